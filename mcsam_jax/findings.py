"""The words that records, labels and scores share: findings, what is said of them, and views.

They stand apart from the record schema so that scoring a file of reports loads
no TensorFlow.
"""

# The 14 findings of CheXpert (Irvin et al., AAAI 2019), in the order of its csv.
FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
LABEL_VALUES = ("absent", "negative", "uncertain", "positive")   # absent: not mentioned
VIEWS = ("frontal", "lateral", "other")

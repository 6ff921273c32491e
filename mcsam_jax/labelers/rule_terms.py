r"""The vocabulary of the rule-based labeler: findings, organs and their states, and cues that change a label.

Each table is an ordered list of (meaning, patterns). A pattern is a regular expression over lower-case text that
matches whole words. In it a space matches any run of spaces, line breaks and hyphens, and "~" matches the same or
nothing: "air~space" matches airspace, air space and air-space. A text is scanned from left to right; where several
entries match at the same position, the first entry of the table wins. Specific entries therefore precede general
ones, such as "pericardial effusion" before "effusion".

The terms were written while reading the training reports of IU X-Ray, following the definitions of CheXpert (Irvin et
al., AAAI 2019). docs/labeler.md explains where and why they differ from CheXpert's labeler.
"""

# ---- Findings --------------------------------------------------------------------------------------------------------
# "Other" is not a finding of CheXpert: it marks a report as not normal. "ignore" hides the matched words from the other
# entries.
TERMS = (
    ("ignore", (
        r"(?:pericardial|joint|knee|shoulder|elbow|suprapatellar) effusions?",
        r"(?:laryngeal|soft tissue|subcutaneous|epiglottic|pedal|peripheral|chest wall|body wall) o?edema",
        r"(?:granulomatous|tuberculous|tuberculosis|fungal|histoplasm\w+|tb) infections?", r"post~infectious\w*",
        r"(?:vertebra\w*|end~plate|disc) (?:body |bodies )?collapsed?",
        r"collapse of (?:\w+ ){0,3}(?:vertebra\w*|discs?)",
        r"(?:sternotomy|sternal) (?:wires?|sutures?|xxxx) (?:is|are|appears?) (?:again )?fractured",
        r"fractur\w+ (?:of (?:the )?)?(?:\w+ ){0,2}(?:wires?|leads?|sternotomy)", r"(?:catheter|wire|lead) fractur\w+",
        r"cystic fibrosis", r"(?:bronchial|eustachian) tubes?", r"lead(?:s|ing)? to", r"mass effect", r"body mass",
        r"(?:normal|symmetric) (?:\w+ ){0,2}markings", r"breast (?:prosthes[ie]s|implants?)",
        r"(?:thyroid|breast|abdominal|renal|hepatic|liver|brain|soft tissue|pericardial) "
        r"(?:mass(?:es)?|nodules?|tumou?rs?)",
        r"(?:rib|bony?|osseous|sclerotic|lytic|blastic|destructive|skin|vertebral) (?:\w+ )?(?:or \w+ )?lesions?",
        r"lesions? (?:of|in|within) (?:the )?(?:ribs?|bones?|spine|skeleton|vertebra\w*)",
    )),
    ("Other", (
        r"(?:calcifi\w+|granulomatous) (?:[\w.]+ ){0,3}nodul\w+", r"pleural calcifi\w+",
        r"(?:pleural|mediastinal) mass(?:es)?",
    )),
    ("Enlarged Cardiomediastinum", (
        r"(?:widening|enlargement|prominence|fullness) of (?:the )?(?:(?:upper|superior) )?(?:cardio~)?mediast\w+",
        r"(?:cardio~)?mediastinal (?:widening|enlargement|prominence|fullness)",
    )),
    ("Cardiomegaly", (
        r"cardiomegaly", r"(?:cardiac|heart|four chamber) enlargement",
        r"(?:enlargement|increased? (?:in )?(?:the )?size) of (?:the )?(?:heart|cardiac (?:silhouette|shadow))",
        r"increased? (?:in )?(?:the )?(?:heart|cardiac) size",
    )),
    ("Lung Lesion, Lung Opacity", (r"nodular (?:like )?(?:soft tissue )?opacit(?:y|ies)",)),
    ("Lung Lesion", (
        r"(?:micro)?nodules?", r"nodular (?:like )?(?:soft tissue )?(?:densit(?:y|ies)|lesions?|foc(?:us|i))",
        r"mass(?:es)?(?: lesions?)?", r"mass~like", r"lesions?", r"carcinomas?", r"neoplas\w+", r"tumou?rs?",
        r"malignan\w+",
    )),
    ("Edema", (r"o?edema", r"(?:volume|fluid) overload", r"kerley(?: b)?(?: lines?)?")),
    ("Consolidation", (r"consolidat(?:ions?|ive|ed)", r"air bronchograms?")),
    ("Pneumonia", (
        r"(?:broncho|pleuro)?pneumonias?", r"pneumonitis", r"infections?",
        r"infectious(?: (?:process|etiology|infiltrates?))?",
    )),
    ("Atelectasis", (r"atelect\w+", r"collapsed?")),
    ("Pneumothorax, Pleural Effusion", (r"(?:hydro|hemo|haemo)pneumothora(?:x|ces|xes)",)),
    ("Pneumothorax", (r"pneumothora(?:x|ces|xes|cies)", r"pleural air(?: collections?)?")),
    ("Pleural Effusion", (r"(?:(?:sub)?pleural )?effusions?", r"pleural fluid(?: collections?)?",
                          r"(?:hydro|hemo|haemo)thora(?:x|ces)", r"(?:pleural|loculated) (?:fluid )?collections?")),
    ("Pleural Other", (
        r"(?:pleural|(?:bi)?apical|fissural|pleuro~parenchymal|fibro~nodular)(?: pleural)?(?: and \w+)? thickening",
        r"thickening of the (?:\w+ )?(?:fissure|pleura)\w*", r"pleural (?:fibrosis|plaques?|reaction)", r"fibro~thorax",
        r"(?:pleural|pleuro~parenchymal|pleuro~pericardial) scar(?:s|ring)?", r"(?:bi)?apical (?:pleural )?caps?",
    )),
    ("Lung Opacity", (
        r"opaci(?:ty|ties|fications?|fied)", r"infiltrat(?:es?|ions?)",
        r"(?:air~space|alveolar) (?:disease|process|abnormalit\w+)",
        r"(?:interstitial|reticular|reticulo~nodular) (?:markings|pattern|thickening|prominence|abnormalit\w+)",
        r"(?:increased|prominent|coarse\w*|accentuated) (?:\w+ ){0,2}markings",
        r"interstitial (?:\w+ )?(?:lung )?(?:disease|changes?)", r"reticulations?", r"haz(?:e|iness)",
        r"(?:increased|patchy|focal|abnormal|vague|streaky|hazy|ill defined) densit(?:y|ies)", r"ground glass",
        r"scar(?:s|ring)?", r"fibrosis",
    )),
    ("Fracture", (r"fractur(?:es?|ed)",)),
    ("Support Devices", (
        r"(?:pace~makers?|pacers?|pacing)(?: (?:wires?|leads?|device))?", r"a?icds?", r"defibrillators?",
        r"(?:(?:cardiac|monitor) )?leads?", r"loop recorders?", r"(?:neuro~)?stimulators?", r"balloon pump",
        r"swan ganz", r"catheters?", r"piccs?(?: lines?)?",
        r"(?:central|venous|picc|subclavian|jugular|ij|arterial|dialysis) lines?",
        r"(?:porta?|medi|infusa)~?(?:caths?|ports?)", r"(?:chest|infusion|venous|power) ports?",
        r"(?:xxxx|port) a (?:xxxx|cath)", r"shunt (?:catheter|tubing)", r"tracheostomy(?: tubes?)?",
        r"(?:(?:endotracheal|nasogastric|orogastric|enteric|feeding|gastrostomy|chest|drainage|et|ng|og) )?tubes?",
        r"(?:pigtail|surgical|jp|pleural) drains?", r"(?:sternotomy|sternal|cerclage) (?:wires?|sutures?|xxxx)",
        r"(?:prosthetic|artificial|mechanical|bioprosthetic) (?:\w+ )?valves?",
        r"valve (?:replacements?|prosthes[ie]s)",
        r"(?:(?:coronary|vascular|aortic|artery) )?stents?", r"hardware", r"prosthes[ie]s", r"arthroplast(?:y|ies)",
        r"screws?", r"(?:closure|occlu\w+) device", r"(?:support|assist|cardiac|implanted) (?:devices?|apparatus)",
    )),
    ("Other", (
        r"emphysem\w+", r"copd|chronic obstructive", r"hyper~(?:inflat|expan|disten|lucen|aerat)\w+",
        r"bull(?:ae?|ous)", r"volume loss", r"bronchi(?:tis|ectasis|olitis)", r"aspiration", r"contusion",
        r"granulom\w+", r"calcifi\w+",
        r"congesti\w+|engorge\w+|cephalization|cuffing", r"heart failure|chf", r"hypertension", r"(?:athero)?sclero\w+",
        r"ectasia|ectatic|tortuo\w+|aneurysm\w*", r"blunt\w+", r"elevat\w+", r"eventration", r"herni\w+",
        r"pneumo(?:mediastinum|peritoneum)", r"(?:lymph)?adenopathy", r"metasta\w+", r"prominen(?:t|ce)",
        r"scolio\w+|kypho\w+", r"degenerative|spondylo\w+|osteophyt\w+|(?:osteo)?arthrit\w+|arthropathy", r"osteop\w+",
        r"deformit(?:y|ies)",
    )),
)

# ---- Organs ----------------------------------------------------------------------------------------------------------
# (the findings that an organ's state determines, names of the organ). "ignore" matches an organ that is named as a
# location, without a judgment of it.
_LOCATED = (r"(?:over|behind|overl(?:ies|ying|ie)|(?:posterior|anterior|adjacent|superior|inferior) to|within|in|"
            r"projects? over)")
ORGANS = (
    ("ignore", (
        _LOCATED + r" (?:the )?(?:\w+ ){0,2}(?:heart|cardiac (?:silhouettes?|shadow)|mediastinum|lungs|lung fields)"
        r"(?: size)?",
        r"heart (?:failure|valves?|disease|borders?|rate|transplant\w*)", r"(?:left|right) heart(?: \w+)?",
        r"(?:evaluat|assess|visuali[sz]|exclud|obscur)\w+ (?:of |for )?(?:the )?"
        r"(?:heart|cardiac|mediastin\w+)(?: \w+)?",
    )),
    ("Cardiomegaly, Enlarged Cardiomediastinum", (
        r"cardiac,?(?: and)? mediastinal(?:,?(?: and)? hilar)? (?:silhouettes?|contours?|structures)",
        r"cardio~mediast\w+(?: (?:and hilar )?(?:silhouettes?|contours?|size|structures|shadow|borders?))?",
    )),
    ("Cardiomegaly", (
        r"(?:size of (?:the )?)?(?:heart|cardiac) (?:silhouettes?|shadow|contours?|size)(?: size)?",
        r"size of the heart", r"heart",
    )),
    ("Enlarged Cardiomediastinum", (
        r"(?:(?:upper|superior) )?mediastinum",
        r"(?:(?:upper|superior|hilar and) )?mediastinal (?:and hilar )?"
        r"(?:silhouettes?|contours?|structures|width|borders?)",
    )),
    ("Lung Opacity", (r"lungs", r"lung fields")),
    ("Pleural Effusion", (r"pleural spaces?",)),
)
_CONTRACTED = r"(?:is|are|was|were|has|have|had|does|do|did|could)n'?t"
# (label, states of an organ that give its findings this label). "unclear" states determine no label.
STATES = (
    ("uncertain", (
        r"(?:upper|top)(?: limits?)?(?: of)? normal(?: in)?(?: size)? (?:or|to|versus) (?:\w+ly )?enlarged",
        r"borderline(?: (?:normal|enlarged|large|prominent))?", r"normal (?:or|to|versus) (?:\w+ly )?enlarged",
    )),
    ("negative", (
        r"(?:upper|top|high)(?: limits?| range| end)?(?: of)?(?: the)? normal(?: limits?| range)?", r"upper limits?",
        r"within (?:\w+ )?limits?(?: of normal)?", r"within (?:the )?normal (?:limits?|range)", r"normal limits",
        rf"(?:not|no longer|without being|{_CONTRACTED})(?: \w+){{0,3}}? "
        r"(?:enlarged|large|widened|wide|prominent|dilated)",
        r"non~enlarged", r"normal",
        r"unremarkable", r"clear",
    )),
    ("positive", (
        r"enlarge(?:d|ment)", r"larger?", r"increased", r"dilated", r"widen(?:ed|ing)|wide", r"prominen(?:t|ce)",
    )),
    ("unclear", (
        rf"(?:not|{_CONTRACTED}) (?:\w+ )?(?:clear|normal)",
        r"stable|unchanged|similar|obscured|accentuated|exaggerated|shift(?:ed)?",
        r"rotated|deviated|calcified|difficult|midline", r"hyper\w+|hypo\w+",
    )),
)
NEVER_ENLARGED = ("Lung Opacity", "Pleural Effusion")     # only their normal state determines a label

# ---- Cues ------------------------------------------------------------------------------------------------------------
# (label and scope, cues). "negative after" negates the findings after the cue, as in "no effusion"; "negative before"
# negates those before it, as in "the effusion has resolved"; "around" acts in both directions. "ignore" cues withdraw
# the mention, as in "evaluate for effusion".
_BE = r"(?:(?:is|are|was|were|has|have|had|been|be|to|felt|thought|now|again|since|also|remains?|seems?|appears?) )*"
_IS = r"(?:(?:is|are|was|were|be|seems?|appears?|felt|thought|considered|to) )+"
_HOW = r"(?:(?:\w+ly|well|yet|been|be|longer|on|in|the|this|either|today'?s|exam|view|study|film|image|radiograph) )*"
_SEEN = (r"(?:seen|identified|visuali[sz]ed|evident|present|appreciated|demonstrated|noted|apparent|detected|observed|"
         r"found|shown|visible|confirmed|suspected)")
_CHANGE = r"(?:changed?|changes|increased?|decreased?|improve(?:d|ment)|progress(?:ion|ed)|worsen(?:ing|ed))"
_MUCH = r"(?:\w+ly|significant|interval|appreciable|definite|substantial|relevant|further|major|evidence of|been|yet)"
_CANNOT = r"(?:cannot|can not|can'?t|could not|unable to|not|difficult to|hard to|impossible to)"
_ASSESSED = r"(?:assess|evaluat|determin|comment|interpret)ed(?: on)?"
_END = r"(?=\W*(?:$|(?:on|in|by|at|given|and|but)\b))"
CUES = (
    # Hides words that would otherwise be a cue: "no change in the effusion" negates nothing.
    ("neutral", (
        rf"(?:no|without|not)(?: {_MUCH})* {_CHANGE}(?: (?:in|of))?",
        r"no enlargement of (?!the (?:heart|card|mediast))",
        r"(?:consistent|compatible|associated|keeping|along|concordant) with", r"not only", r"no doubt",
        r"(?:near(?:ly)?|partial(?:ly)?|incomplete(?:ly)?|almost|some)(?: complete(?:ly)?)?(?: interval)? "
        r"(?:resol|clear)\w+(?: of)?",
        rf"(?:not|yet|nor|incompletely|without|{_CONTRACTED})(?: \w+){{0,3}}? "
        r"(?:resolved|cleared|resolution|clearing)(?: of)?",
    )),
    ("ignore before", (
        r"(?:may|might|can|could)(?: \w+)? not be (?:\w+ )?" + _SEEN, r"precautions|protocol|workup|prophylaxis",
        rf"{_BE}{_CANNOT}(?: be)?(?: \w+ly| well)? {_ASSESSED}", rf"{_BE}(?:not|non|un)~(?:assess|evalu)able",
    )),
    ("ignore after", (
        r"(?:history|hx|h/o|risk|setting|sequelae?|signs|symptoms)(?: (?:and|or) \w+)? of",
        r"(?:evaluat\w+|assess\w*|look\w*|check\w*|screen\w*|monitor|follow) for",
        rf"{_CANNOT}(?: \w+ly| well)? (?:assess|evaluate|determine|comment on)(?! for)", r"assessment of",
        r"(?:in order )?to (?:exclude|rule out|ensure)", r"rule~out|r/o", r"evaluation of",
        r"(?:may|might|could|can) (?:obscure|hide|mask)", r"correlat\w+(?: \w+){0,4}? for",
        r"if(?: \w+){0,4}? (?:concern|suspicion|suspected|suspect\w*)(?: \w+)?", r"in (?:a |the )?patients? with",
        r"(?:prior|previous)(?= (?:\w+ ){0,3}(?:pneumonia|infection))",
    )),
    ("uncertain before", (
        rf"{_BE}{_CANNOT}(?: be)?(?: \w+){{0,3}}? (?:excluded|ruled out|discounted)",
        rf"{_BE}{_CANNOT}(?: \w+){{0,2}}? exclude{_END}",
        r"(?:is|are|remains?|would be) (?:also )?(?:possible|suspected|questioned|questionable|considered|conceivable|"
        r"equivocal|favou?red|(?:a|another) (?:possibility|consideration|concern))",
        rf"{_IS}(?:less likely|unlikely|presumed)",
        r"(?:should|could|might|may|can) (?:also )?be (?:considered|present|possible|suspected|seen)",
        rf"{_BE}in the differential", r"(?:may|might|could) (?:also )?have (?:this|a similar) appearance",
    )),
    ("uncertain around", (r"versus|vs", r"\?", r"suspected|questioned", r"less likely|unlikely")),
    ("uncertain after", (
        rf"{_CANNOT}(?: \w+){{0,2}}? (?:exclude|rule out)",
        r"may|might|could|would|can (?:be|represent|reflect|indicate)",
        r"possibl[ey]|possibility of|probabl[ey]|presum\w+|perhaps|maybe|conceivabl[ey]|equivocal(?:ly)?", r"either",
        r"question(?:able)?(?: of)?|doubtful", r"suspect|suspicio(?:us|n) (?:for|of)|suggestion of",
        r"favou?r(?:s|ed|ing)?", r"(?:concern\w*|worr(?:isome|y|ied)) (?:for|of|about|regarding)",
        r"consider(?:ations?|ing|ed)?", r"differential\w*",
        r"rais(?:es|ing) (?:the )?(?:possibility|question|concern|suspicion)(?: (?:of|for))?",
    )),
    ("negative before", (
        r"(?:(?:is|are|was|were|has|have|had|been|now|since|fully|completely|largely|entirely|interval\w*) )+"
        r"(?:resolved|cleared|disappeared|gone|absent|removed|withdrawn(?! \d)|extracted|replaced|excluded|ruled out)",
        rf"{_BE}(?:not|no longer|never|{_CONTRACTED}) {_HOW}{_SEEN}", r"(?:is|are) out",
        r": (?:none|absent|negative(?! for)|nil|no(?=\W*$))",
    )),
    ("negative around", (r"resolved|cleared|disappeared|removed|absent",)),
    ("negative after", (
        r"no(?: (?:definite|obvious|evidence|signs?|convincing))?(?: (?:of|for))?", r"without|w/o",
        r"not|never|neither|nor|nothing",
        r"none of", _CONTRACTED, r"(?:free|clear|devoid) (?:of|from)", r"negative for",
        r"(?:absence|lack) of", r"rather than|instead of", r"fail(?:s|ed|ure) to", r"exclud(?:es|ing)",
        r"(?:resolution|clearing|clearance|removal|extraction|withdrawal|disappearance|drainage) of",
    )),
    # Begins a new claim, which earlier cues do not reach.
    ("stop", (
        r"but|however|although|though|yet|except(?: for)?|aside from|apart from|other than|besides|despite|while|"
        r"whereas|which|with",
        r"there(?= (?:is|are|was|were|has|have|may|might|could|remains?|appears?))", r"additionally",
    )),
)
# After a finding within a cue's scope, one of these words begins a new claim unless "or" follows: so in "no
# pneumothorax, small effusion", but not in "no pneumothorax, small effusion or consolidation".
ASSERTED = (r"(?:the|an?|small|tiny|trace|mild|minimal|moderate|severe|stable|unchanged|persistent|residual|chronic|"
            r"old|new|bilateral|bibasilar|left|right|increas(?:ed|ing)|decreas(?:ed|ing)|improv(?:ed|ing)|worsening|"
            r"known|patchy|streaky|possible|probable|again)")

"""Image files and folders of a user: which files are radiographs, which belong to one study, and which view each shows.

There is no table with this information, so it is taken from the files. A study consists of
  - the DICOM files of one patient with the same StudyInstanceUID, wherever they are;
  - the other images of a folder that was given, or that is inside one that was given, if there are at most MAX_VIEWS;
  - files in one folder whose names differ only in the view: smith_pa.png, smith_lateral.png;
  - otherwise one file. The user can also choose the grouping (GROUPINGS).
The view of an image comes from its DICOM header, otherwise from its name, otherwise from its position: the first image
is the frontal, the second the lateral.

Nothing from a DICOM header leaves this package except the view and warnings in fixed words: no name, number or date.
"""

from input_pipeline.user_images.image_file import ImageFile
from input_pipeline.user_images.reading import order_views, read_jpeg, read_study, UserStudy
from input_pipeline.user_images.studies import find_studies, FoundStudies, GROUPINGS, MAX_VIEWS

__all__ = ["find_studies", "FoundStudies", "GROUPINGS", "ImageFile", "MAX_VIEWS", "order_views", "read_jpeg",
           "read_study", "UserStudy"]

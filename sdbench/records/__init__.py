"""The record: all that is known about one model under one suite. The gate, the leaderboard and the report read nothing else.

A record is an immutable folder `results/<family>/<suite>@<version>/<model>/<digest>/`. It holds `record.json`, `scores.parquet` (a row
for each prompt and sample) and `images/` (a few thumbnails). It is written beside its final place and then renamed. The folder's name
is the digest of `record.json` and `scores.parquet`, so neither can be changed without changing its name.
"""

from sdbench.records.content import (
    DRAWING_PACKAGES,
    ENCODING_PACKAGES,
    Direction,
    Environment,
    Looks,
    Machine,
    Model,
    Name,
    NamedTeacher,
    Record,
    State,
    SuiteId,
    Value,
    column_of,
    influenced_metric,
    is_one,
)
from sdbench.records.files import (
    MAX_THUMBNAILS,
    OWN_ENDING,
    TEACHER_ENDING,
    digest_of,
    find,
    folders,
    newest_per_model,
    now,
    read,
    read_record,
    read_scores,
    suggest_record_in,
    teacher_digest,
    thumbnail_files,
    write,
)
from sdbench.records.scores import Scores, mean_per_prompt

__all__ = [
    "DRAWING_PACKAGES",
    "ENCODING_PACKAGES",
    "MAX_THUMBNAILS",
    "OWN_ENDING",
    "TEACHER_ENDING",
    "Direction",
    "Environment",
    "Looks",
    "Machine",
    "Model",
    "Name",
    "NamedTeacher",
    "Record",
    "Scores",
    "State",
    "SuiteId",
    "Value",
    "column_of",
    "digest_of",
    "find",
    "folders",
    "influenced_metric",
    "is_one",
    "mean_per_prompt",
    "newest_per_model",
    "now",
    "read",
    "read_record",
    "read_scores",
    "suggest_record_in",
    "teacher_digest",
    "thumbnail_files",
    "write",
]

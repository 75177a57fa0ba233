"""Thousands of requests: read from files and folders, answered together, written to one file that survives a kill."""

from hippo.batch.answers import Answers
from hippo.batch.rows import Row, rows_of, shard
from hippo.batch.run import Defaults, Summary, answer_all, answered, by_subject, line_of

__all__ = [
    "Answers",
    "Defaults",
    "Row",
    "Summary",
    "answer_all",
    "answered",
    "by_subject",
    "line_of",
    "rows_of",
    "shard",
]

"""Labelled recordings: reading, checking and splitting them. No torch, except in ``loader``."""

from stapes.data.corpora import Corpus, corpus_names, detect_corpus, get_corpus
from stapes.data.fetch import fetch_corpus
from stapes.data.manifest import Clip, Dataset, load_dataset, write_manifest
from stapes.data.scan import Finding, Scan, check, fingerprint, scan
from stapes.data.splits import (
    Split,
    fold_names,
    groups_of,
    hold_out,
    make_folds,
    make_splits,
    official_splits,
    shared_sources,
)

__all__ = [
    "Clip",
    "Corpus",
    "Dataset",
    "Finding",
    "Scan",
    "Split",
    "check",
    "corpus_names",
    "detect_corpus",
    "fetch_corpus",
    "fingerprint",
    "fold_names",
    "get_corpus",
    "groups_of",
    "hold_out",
    "load_dataset",
    "make_folds",
    "make_splits",
    "official_splits",
    "scan",
    "shared_sources",
    "write_manifest",
]

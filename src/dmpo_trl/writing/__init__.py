"""Output files and folders: written aside, then put in place in one step, never over what others wrote."""

from .files import check_file, new_file, place_file
from .folders import (
    MANIFEST,
    Kind,
    check_folder,
    checksums,
    is_inside,
    is_unfinished,
    new_folder,
    read_json,
    sha256,
    write_manifest,
)
from .scratch import check_scratch, is_full, real_path, remove_leftovers, scratch

__all__ = [
    "MANIFEST",
    "Kind",
    "check_file",
    "check_folder",
    "check_scratch",
    "checksums",
    "is_full",
    "is_inside",
    "is_unfinished",
    "new_file",
    "new_folder",
    "place_file",
    "read_json",
    "real_path",
    "remove_leftovers",
    "scratch",
    "sha256",
    "write_manifest",
]

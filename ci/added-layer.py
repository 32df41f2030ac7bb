#!/usr/bin/env python3
"""Makes an image layer: added-layer.py BEFORE.tar AFTER.tar LAYER.tar writes what AFTER has and BEFORE has not, with whiteouts for what is
gone. The same archives give the same layer."""

import hashlib
import posixpath
import sys
import tarfile


def seen(archive, member):
    """All that makes an entry what it is, its content too."""
    content = hashlib.sha256(archive.extractfile(member).read()).digest() if member.isreg() else b""
    xattrs = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    device = (member.devmajor, member.devminor) if member.isdev() else None
    owner = (member.uid, member.gid)
    return (member.type, member.mode, owner, int(member.mtime), member.linkname, device, xattrs, content)


def whiteouts(before, after):
    """Of what is gone, only the uppermost directories."""
    for name in sorted(before - after):
        if posixpath.dirname(name) in after:
            yield posixpath.join(posixpath.dirname(name), ".wh." + posixpath.basename(name))


def main(before_path, after_path, layer_path):
    with tarfile.open(before_path, "r:") as before:
        known = {posixpath.normpath(member.name): seen(before, member) for member in before}
    with tarfile.open(after_path, "r:") as after, tarfile.open(layer_path, "w:", format=tarfile.PAX_FORMAT) as layer:
        names = set()
        for member in after:
            name = posixpath.normpath(member.name)
            names.add(name)
            if known.get(name) != seen(after, member):
                layer.addfile(member, after.extractfile(member) if member.isreg() else None)
        for name in whiteouts(set(known), names):
            layer.addfile(tarfile.TarInfo(name))


main(*sys.argv[1:])

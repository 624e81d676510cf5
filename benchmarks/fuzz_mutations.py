"""From a valid file to one that is damaged, or made to do harm. Every draw comes from ``draw``."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import yaml

OUTSIDE = "../outside/secret.png"
"""A file that lies beside the input's folder and must never be opened."""
WHOLE = [0, 1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1]
NAMES = [
    OUTSIDE, f"../{OUTSIDE}", "images/link.png", "../" * 9 + "etc/passwd", "/etc/passwd",
    "C:\\Windows\\win.ini", "file:///etc/passwd",
    "http://127.0.0.1:9/a.png", "a\0b.png", "a\x1b[2J\x1b[31mred", "\u202egnp.exe", "a\nb", "..",
    "~/.ssh/id_rsa", "$(touch pwned)", "; touch pwned", "{0.__class__}", "%s%n", "[bold]a", "",
    "x" * 5000, "=cmd()", "NUL", "<script>alert(1)</script>", "\ud800", "..\\..\\a", ".hidden",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, "", "0", "-1", "nan", "yes", [], {}, [[]], {"": {}}, [None] * 4,
    *NAMES, *WHOLE, *(-each for each in WHOLE), 2**64, 10**30, 10**400, 0.5, -0.0, 5e-324, 1e308,
    -1e308, float("nan"), float("inf"), -float("inf"), ["a"] * 3000, {"a": [1, {"b": "c"}]},
]  # fmt: skip
TOKENS = [
    *(each.encode("utf-8", "surrogatepass") for each in NAMES),
    b"\0", b"\xff" * 8, b"\x80", b"\xef\xbb\xbf", b"\r\n", b"{", b"}", b"[" * 3000, b"]", b'"',
    b"'", b":", b",", b"&a [*a, *a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['true']",
    b"!!binary x", b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>", b"&a;", b"<a>" * 500,
    b"<![CDATA[", b"]]>", b"<?xml version='1.0' encoding='utf-7'?>", b"1e999", b"-1", b"NaN",
    b"9" * 400, b"0x10", b"true", b"null", b"PK\3\4", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff",
    b"GIF89a", b"II*\0", b"%!PS", b"\x93NUMPY", b"\x1f\x8b",
    b"\x80\x02cos\nsystem\n(X\4\0\0\0truetR.",
]  # fmt: skip


def mutate(data: bytes, form: str, draw: random.Random) -> bytes:
    """Another file of this form: ``bytes``, ``text``, ``json``, ``yaml``, ``zip``, ``tar``...

    The same draws give the same file.
    """
    form = form if draw.random() < 0.75 else "bytes"
    try:
        return _FORMS[form](data, draw)
    except (ValueError, TypeError, ArithmeticError, struct.error):
        return of_bytes(
            data, draw
        )  # values that the form cannot hold, such as a number of 5,000 digits


# Bytes and text ----------------------------------------------------------------------------------


def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four changes of single bytes, numbers and pieces."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(changed) + 1)
        size = min(draw.choice((1, 1, 4, 16, 256)), len(changed) - at)
        what = draw.randrange(8)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif what == 1 and at < len(changed):
            changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2F))
        elif what == 2:
            kind = draw.choice("BHIQ")
            bits = 8 * struct.calcsize(kind)
            number = struct.pack(draw.choice("<>") + kind, draw.choice(WHOLE) % (1 << bits))
            changed[at : at + len(number)] = number
        elif what == 3:
            del changed[at : at + size]
        elif what == 4:
            changed[at:at] = changed[at : at + size]
        elif what == 5:
            del changed[at:]
        elif what == 6:
            changed[at:at] = draw.choice(TOKENS)
        else:
            changed[at : at + size] = bytes(size)
    return bytes(changed)


def of_text(data: bytes, draw: random.Random) -> bytes:
    """One or two words replaced, doubled, removed or changed in sign or size."""
    for _ in range(draw.choice((1, 1, 2))):
        words = list(re.finditer(rb"[\w.+-]+|[^\w\s]", data))
        if not words:
            return of_bytes(data, draw)
        start, end = draw.choice(words).span()
        word = data[start:end]
        new = draw.choice(
            (draw.choice(TOKENS), b"", word + b" " + word, b"-" + word, word * 50, b"\n" + word)
        )
        data = data[:start] + new + data[end:]
    return data


# Trees of values ---------------------------------------------------------------------------------


def of_tree(value: Any, draw: random.Random) -> Any:
    """One to three values of a document replaced, removed, renamed, doubled or moved."""
    root = [copy.deepcopy(value)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        holder, key = draw.choice(_places(root))
        what = draw.randrange(8)
        if what == 0 and isinstance(holder, dict):
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[draw.choice((f"{key}s", str(key).upper(), *NAMES))] = holder.pop(key)
        elif what == 2 and isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * draw.choice((1, 1, 200))
        elif what == 3:
            other, place = draw.choice(_places(root))
            holder[key] = copy.deepcopy(other[place])
        elif what == 4:
            holder[key] = draw.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
        elif what == 5 and type(holder[key]) in (int, float):
            number = holder[key]
            holder[key] = draw.choice((-number, number * 1000, number / 7, number + 1, number**9))
        else:
            holder[key] = draw.choice(VALUES)
    return root[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each))
        found += [(each, key) for key in keys]
        waiting += [each[key] for key in keys if isinstance(each[key], dict | list)]
    return found


def of_json(data: bytes, draw: random.Random) -> bytes:
    """A changed tree, or changed words."""
    if draw.random() < 0.2:
        return of_text(data, draw)
    return json.dumps(of_tree(json.loads(data), draw)).encode()


def of_lines(data: bytes, draw: random.Random) -> bytes:
    """JSON of lines: one of them changed."""
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = of_json(lines[at], draw)
    return b"\n".join(lines)


def of_yaml(data: bytes, draw: random.Random) -> bytes:
    """A changed tree, or changed words."""
    if draw.random() < 0.4:
        return of_text(data, draw)
    return yaml.safe_dump(of_tree(yaml.safe_load(data), draw), sort_keys=False).encode(
        "utf-8", "surrogatepass"
    )


# Archives ----------------------------------------------------------------------------------------


def of_zip(data: bytes, draw: random.Random) -> bytes:
    """A field of the directory changed, a strange member added, or a text member changed."""
    if draw.random() < 0.4:
        changed, places = bytearray(data), [m.start() for m in re.finditer(b"PK[\1\3][\2\4]", data)]
        field, kind = draw.choice(
            ((8, "H"), (10, "H"), (16, "I"), (20, "I"), (24, "I"), (28, "H"), (30, "H"), (42, "I"))
        )
        number = draw.choice(WHOLE) % (1 << (8 * struct.calcsize(kind)))
        at = draw.choice(places) + field
        changed[at : at + struct.calcsize(kind)] = struct.pack("<" + kind, number)
        return bytes(changed)
    members = unpacked(data)
    if draw.random() < 0.5:
        texts = [name for name, _ in members if name.endswith((".json", ".pkl"))]
        chosen, form = draw.choice(texts), draw.choice((of_json, of_bytes))
        form = of_bytes if chosen.endswith(".pkl") else form
        members = [(n, form(d, draw) if n == chosen else d) for n, d in members]
        return packed(members, zipfile.ZIP_STORED if chosen.endswith(".pkl") else 8)
    strange = zipfile.ZipInfo(draw.choice([each for each in NAMES if each and each.isascii()]))
    strange.external_attr = draw.choice((0, 0o120777, 0o060777, 0o040777)) << 16
    strange.compress_type = draw.choice((0, 8, 8, 12, 14))
    content = draw.choice((b"/etc/passwd", bytes(20 << 20), data, *TOKENS))
    return packed(members, 8, strange, content)


def unpacked(data: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of a valid zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def packed(
    members: list[tuple[str, bytes]],
    method: int = zipfile.ZIP_STORED,
    strange: zipfile.ZipInfo | None = None,
    content: bytes = b"",
) -> bytes:
    """A zip of these, and of one strange member."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, each in members:
            archive.writestr(zipfile.ZipInfo(name), each, method)
        if strange is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about a name that is there twice
                archive.writestr(strange, content, compresslevel=1)
    return stream.getvalue()


def of_tar(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed inside of the compression, or a strange member added."""
    plain = gzip.decompress(data)
    if draw.random() < 0.5:
        return gzip.compress(of_bytes(plain, draw), 1, mtime=0)
    stream = io.BytesIO(plain)
    with tarfile.open(fileobj=stream, mode="a") as archive:
        member = tarfile.TarInfo(draw.choice([each for each in NAMES if each.isascii()]))
        member.type = draw.choice(
            (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE,
             tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE)
        )  # fmt: skip
        member.linkname = draw.choice(NAMES[:4])
        member.size = draw.choice((0, 1, 2**33)) if member.isreg() else 0
        archive.addfile(member)
    return gzip.compress(stream.getvalue(), 1, mtime=0)


# Weights and graphs ------------------------------------------------------------------------------


def of_safetensors(data: bytes, draw: random.Random) -> bytes:
    """The header changed: shapes, types, places, the description inside of it."""
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    described = header.get("__metadata__", {}).get("detrlab")
    if described and draw.random() < 0.7:
        tree = of_tree(json.loads(described), draw)
        header["__metadata__"]["detrlab"] = json.dumps(tree)
    else:
        header = of_tree(header, draw)
    text = json.dumps(header).encode()
    size = len(text) if draw.random() < 0.95 else draw.choice(WHOLE)
    return size.to_bytes(8, "little") + text + tensors


def of_pth(data: bytes, draw: random.Random) -> bytes:
    """The pickle inside changed or replaced, or the archive around it."""
    if not data.startswith(b"PK"):
        return of_bytes(data, draw)
    if draw.random() < 0.3:
        return of_zip(data, draw)
    members = unpacked(data)
    calls = draw.choice(
        (b"cos\nsystem\n(S'touch pwned'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.",
         b"\x80\x02ctorch.hub\nload\n(X\1\0\0\0atR.", b"ctorch\nload\n(S'/etc/passwd'\ntR.")
    )  # fmt: skip
    at = draw.random()

    def pickle_of(each: bytes) -> bytes:
        if at < 0.2:
            return calls
        if at < 0.35:  # in the middle of what is there
            place = draw.randrange(len(each))
            return each[:place] + calls[:-1] + each[place:]
        return of_bytes(each, draw)

    members = [(n, pickle_of(d) if n.endswith("data.pkl") else d) for n, d in members]
    return packed(members)


def of_onnx(data: bytes, draw: random.Random) -> bytes:
    """One part of the graph changed: a shape, a type, an operator, a place of weights."""
    import onnx

    model = onnx.load_from_string(data)
    graph = model.graph
    tensor = draw.choice(graph.initializer)
    node = draw.choice(graph.node)
    port = draw.choice([*graph.input, *graph.output])
    what = draw.randrange(9)
    if what == 0:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(WHOLE)
    elif what == 1:
        tensor.data_type = draw.randrange(25)
    elif what == 2:
        node.op_type = draw.choice(
            ("ConstantOfShape", "Expand", "Tile", "Loop", "If", "Resize", "Range", "Softmax", "Run")
        )
    elif what == 3:
        node.domain = draw.choice(("evil", "com.microsoft", "ai.onnx.ml", *NAMES[:4]))
    elif what == 4:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": draw.choice(NAMES), "length": str(draw.choice(WHOLE))}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value.encode("utf-8", "replace").decode())
    elif what == 5:
        shape = port.type.tensor_type.shape.dim
        shape[draw.randrange(len(shape))].dim_value = draw.choice(WHOLE)
    elif what == 6:
        port.name = draw.choice(NAMES).encode("utf-8", "replace").decode()
    elif what == 7 and model.metadata_props:
        entry = draw.choice(model.metadata_props)
        try:
            entry.value = json.dumps(of_tree(json.loads(entry.value), draw))
        except ValueError:
            entry.value = draw.choice(("{", "", "[" * 2000, "__import__('os')", "1" * 5000))
    else:
        model.opset_import[0].version = draw.choice((0, 1, 99, 2**31))
    return model.SerializeToString()


def of_http(data: bytes, draw: random.Random) -> bytes:
    """A request of which the first line, a header or the body is changed."""
    head, _, body = data.partition(b"\r\n\r\n")
    if draw.random() < 0.4:
        body = of_bytes(body, draw) if body else draw.choice(TOKENS)
        head = re.sub(rb"(?i)content-length: \d+", b"content-length: %d" % len(body), head)
        return head + b"\r\n\r\n" + body
    if draw.random() < 0.5:
        line = draw.choice(
            (b"content-length: -1", b"content-length: 99999999999999999999", b"content-length: a",
             b"transfer-encoding: chunked", b"content-type: text/html", b"host: evil.example",
             b"content-type: multipart/form-data; boundary=" + b"x" * 300, b"expect: 100-continue",
             b"sec-fetch-site: cross-site", b"range: bytes=0-", b"upgrade: h2c", b"x: \xff\0")
        )  # fmt: skip
        return head + b"\r\n" + line + b"\r\n\r\n" + body
    return of_text(head, draw) + b"\r\n\r\n" + body


_FORMS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": of_bytes,
    "text": of_text,
    "json": of_json,
    "jsonl": of_lines,
    "yaml": of_yaml,
    "zip": of_zip,
    "tar": of_tar,
    "safetensors": of_safetensors,
    "pth": of_pth,
    "onnx": of_onnx,
    "http": of_http,
}

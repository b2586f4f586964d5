"""Describes the API to the package: `ditserve/api.binpb` is made of the repository's protos.

The client makes its messages of that description when it is imported, so it needs no generated code, which asks for
one version of protobuf. A source distribution holds the description in place of the protos.
"""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parents[1] / "proto"
DESCRIPTION = HERE / "src/ditserve/api.binpb"


def describe_api() -> None:
    from grpc_tools import protoc

    sources = [*sorted(PROTOS.glob("ditserve/v1/*.proto")), *sorted(PROTOS.glob("google/rpc/*.proto"))]
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={DESCRIPTION}"]
    if protoc.main([*arguments, *map(str, sources)]) != 0:
        raise SystemExit("setup.py: protoc could not describe the API")


if not (HERE / "PKG-INFO").exists():  # Which a source distribution has: what lies around that is not the repository's.
    describe_api()
if __name__ == "__main__":
    setup()

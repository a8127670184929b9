"""Build information and CPU capability (csrc/host)."""

from typing import TypedDict

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    isas: list[str]
    torch_target: str
    cuda_compiler: str
    cuda_architectures: str

def build_info() -> _BuildInfo: ...
def cpu_capability() -> str: ...

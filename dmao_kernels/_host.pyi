"""Build information and CPU capability (csrc/host)."""

from typing import TypedDict, type_check_only

@type_check_only
class BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    isas: list[str]
    torch_target: str
    cuda_compiler: str
    cuda_architectures: str

def build_info() -> BuildInfo: ...
def cpu_capability() -> str: ...

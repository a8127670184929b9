// dmao_kernels._host: what the build is and what this machine can run. Knows nothing of PyTorch.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "dmao/isa.h"

namespace py = pybind11;

namespace {

py::list built_isas() {
    py::list names;
    std::istringstream stream(dmao::built_isas());
    for (std::string name; stream >> name;) names.append(name);
    return names;
}

py::dict build_info() {
    py::dict info;
    info["version"] = DMAO_VERSION;
    info["compiler"] = DMAO_COMPILER;
    info["flags"] = DMAO_FLAGS;
    info["isas"] = built_isas();
    info["torch_target"] = DMAO_TORCH_TARGET;
    info["cuda_compiler"] = DMAO_CUDA_COMPILER;
    info["cuda_architectures"] = DMAO_CUDA_ARCHITECTURES;
    return info;
}

const char* cpu_capability() { return dmao::isa_name(dmao::active_isa()); }

}  // namespace

PYBIND11_MODULE(_host, m) {
    m.doc() = "Build information and CPU capability of dmao_kernels.";
    m.def("build_info", &build_info,
          "Version, compiler, flags, instruction sets and PyTorch target of this build; version of "
          "nvcc "
          "and architectures of the kernels in CUDA C++, empty without them.");
    m.def("cpu_capability", &cpu_capability,
          "Name of the instruction set whose kernels run: the best that this CPU supports, or what "
          "DMAO_CPU_CAPABILITY "
          "names. RuntimeError when that name is unknown or not supported here.");
}

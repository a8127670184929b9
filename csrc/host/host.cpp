// dmao_kernels._host: what the build is and what this machine can run. Knows nothing of PyTorch,
// and of Python only its limited API, so that one build serves every version from 3.10 on.
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <exception>

#include "dmao/isa.h"

namespace {

PyObject* build_info(PyObject*, PyObject*) {
    PyObject* isas = PyUnicode_FromString(dmao::built_isas());
    PyObject* names = isas == nullptr ? nullptr : PyUnicode_Split(isas, nullptr, -1);
    Py_XDECREF(isas);
    if (names == nullptr) return nullptr;
    return Py_BuildValue("{s:s,s:s,s:s,s:N,s:s,s:s,s:s}", "version", DMAO_VERSION, "compiler",
                         DMAO_COMPILER, "flags", DMAO_FLAGS, "isas", names, "torch_target",
                         DMAO_TORCH_TARGET, "cuda_compiler", DMAO_CUDA_COMPILER,
                         "cuda_architectures", DMAO_CUDA_ARCHITECTURES);
}

PyObject* cpu_capability(PyObject*, PyObject*) {
    try {
        return PyUnicode_FromString(dmao::isa_name(dmao::active_isa()));
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "Version, compiler, flags, instruction sets and PyTorch target of this build; version of nvcc "
     "and architectures of the kernels in CUDA C++, empty without them."},
    {"cpu_capability", cpu_capability, METH_NOARGS,
     "Name of the instruction set whose kernels run: the best that this CPU supports, or what "
     "DMAO_CPU_CAPABILITY names. RuntimeError when that name is unknown or not supported here."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_host",
    "Build information and CPU capability of dmao_kernels.",
    0,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__host() { return PyModule_Create(&module); }

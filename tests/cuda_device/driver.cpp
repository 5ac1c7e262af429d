// libcuda.so.1, which torch links to: of the driver, torch asks only whether a device is in use.
#include <cuda.h>

extern "C" {
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "emulated driver";
  return CUDA_SUCCESS;
}
}

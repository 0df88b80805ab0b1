__global__ void unused_variable_kernel(float* x) {
  int unused = 3;
  x[threadIdx.x] = 0;
}

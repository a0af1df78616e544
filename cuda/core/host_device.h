#pragma once
// Marks a function that host code and kernels share.
#ifdef __CUDACC__
#define LONGSEQ_HOST_DEVICE __host__ __device__
#else
#define LONGSEQ_HOST_DEVICE
#endif

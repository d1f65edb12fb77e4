// The words that CUDA's headers expect of nvcc. The wheels have those headers, but not the one that defines the words.
#pragma once
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDART_CB
#define __specialization_static static
#define __location__(a)
#define __inline_hint__
#define __forceinline__ inline
#define __no_return__
#define __import__
#define __export__
#define __cdecl
#define __annotate__(a)
#define __noinline__

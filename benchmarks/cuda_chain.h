#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

/// Kernels in a chain of dependent launches, recorded and timed: what the benchmarks of chains share.
namespace rwkvx::cuda {

inline void check(cudaError_t result) {
  if (result == cudaSuccess) return;
  std::printf("%s\n", cudaGetErrorString(result));
  std::exit(1);
}

/// `dependent`: the kernel may start before the one before it has ended.
template <typename... Parameters, typename... Arguments>
void launch_in_chain(cudaStream_t stream, bool dependent, int blocks, int threads, size_t shared,
                     void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  if (shared > 32 * 1024) {
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

/// Median of ten times of `work` as a graph, in milliseconds.
inline double milliseconds_of(cudaStream_t stream, const std::function<void()>& work) {
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&ready, graph, 0));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> all;
  for (int i = 0; i < 13; ++i) {
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(ready, stream));
    check(cudaEventRecord(end, stream));
    check(cudaStreamSynchronize(stream));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 3) all.push_back(milliseconds);
  }
  std::sort(all.begin(), all.end());
  check(cudaGraphExecDestroy(ready));
  check(cudaGraphDestroy(graph));
  return all[all.size() / 2];
}

}  // namespace rwkvx::cuda

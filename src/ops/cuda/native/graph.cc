#include "ops/cuda/gpu.h"

namespace rwkvx::cuda {

bool Gpu::begin_recording() {
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "recording");
  recording_ = true;
  return true;
}

std::shared_ptr<void> Gpu::end_recording() {
  recording_ = false;
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream(), &graph) != cudaSuccess || graph == nullptr) {
    cudaGetLastError();
    return nullptr;
  }
  cudaGraphExec_t ready = nullptr;
  const cudaError_t result = cudaGraphInstantiate(&ready, graph, 0);
  cudaGraphDestroy(graph);
  if (result != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return {ready, [](void* recording) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording)); }};
}

void Gpu::play(void* recording) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), stream()), "starting a graph");
}

}  // namespace rwkvx::cuda

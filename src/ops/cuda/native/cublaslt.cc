#include <cublasLt.h>
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <tuple>

#include "base/error.h"
#include "base/log.h"
#include "ops/cuda/matrix.h"

/// Products by cuBLASLt, which is loaded when it is first needed: rwkvx starts without it.
namespace rwkvx::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

void check_blas(cublasStatus_t status, std::string_view what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail("cuBLASLt failed ({}): status {}", what, static_cast<int>(status));
}

/// The functions that are used, found by name.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  bool found = false;

  Library() {
    void* handle = nullptr;
    for (const char* name :
         {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so",
          "/usr/local/cuda/lib64/libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so"}) {
      if (handle == nullptr) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (handle == nullptr) {
      log_warning(
          "cuBLASLt was not found ({}); long prompts and training will be slow on the GPU. Install it "
          "(Debian, Ubuntu: libcublas-13-0) or add its folder to LD_LIBRARY_PATH",
          dlerror());
      return;
    }
    found = true;
    const auto get = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, name));
      found = found && function != nullptr;
    };
    get(create, "cublasLtCreate");
    get(matmul, "cublasLtMatmul");
    get(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    get(desc_create, "cublasLtMatmulDescCreate");
    get(desc_set, "cublasLtMatmulDescSetAttribute");
    get(layout_create, "cublasLtMatrixLayoutCreate");
    get(preference_create, "cublasLtMatmulPreferenceCreate");
    get(preference_set, "cublasLtMatmulPreferenceSetAttribute");
  }
};

const Library& library() {
  static const Library one;
  return one;
}

/// How a product of some size is done. Kept for the life of the process, as the library's handle is.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool possible = false;
};

cudaDataType_t cuda_type(DType type) { return type == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

class Multiplier {
 public:
  explicit Multiplier(Gpu& gpu)
      : workspace_(DType::u8, {static_cast<int64_t>(kWorkspaceBytes)}, gpu.allocator()) {
    check_blas(library().create(&handle_), "starting it");
  }

  bool multiply(Gpu& gpu, const Product& p) {
    const Plan& plan = plan_for(p);
    if (!plan.possible) return false;
    const float alpha = 1, beta = p.add ? 1 : 0;
    // Column-major, as the library has it, all matrices are transposed: dᵀ = bᵀ · aᵀ.
    check_blas(
        library().matmul(handle_, plan.desc, &alpha, p.b, plan.a, p.a, plan.b, &beta, p.d, plan.d, p.d,
                         plan.d, &plan.algorithm, workspace_.view().data(), kWorkspaceBytes, gpu.stream()),
        "a product");
    return true;
  }

 private:
  const Plan& plan_for(const Product& p) {
    const auto key = std::make_tuple(p.m, p.n, p.k, p.type, p.d_type, p.a_transposed, p.b_transposed, p.add);
    const auto found = plans_.find(key);
    if (found != plans_.end()) return found->second;
    Plan plan;
    const Library& lib = library();
    check_blas(lib.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    const cublasOperation_t op_b = p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                            op_a = p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_blas(lib.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof op_b),
               "describing a product");
    check_blas(lib.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof op_a),
               "describing a product");
    const auto layout = [&](cublasLtMatrixLayout_t& to, DType type, int64_t rows, int64_t columns) {
      check_blas(lib.layout_create(&to, cuda_type(type), static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), rows),
                 "describing a matrix");
    };
    layout(plan.a, p.type, p.b_transposed ? p.k : p.n, p.b_transposed ? p.n : p.k);
    layout(plan.b, p.type, p.a_transposed ? p.m : p.k, p.a_transposed ? p.k : p.m);
    layout(plan.d, p.d_type, p.n, p.m);
    cublasLtMatmulPreference_t preference;
    check_blas(lib.preference_create(&preference), "choosing a way");
    check_blas(lib.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                  sizeof kWorkspaceBytes),
               "choosing a way");
    const uint32_t alignment = 16;
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      check_blas(lib.preference_set(preference, attribute, &alignment, sizeof alignment), "choosing a way");
    }
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status =
        lib.heuristic(handle_, plan.desc, plan.a, plan.b, plan.d, plan.d, preference, 1, &result, &count);
    plan.possible = status == CUBLAS_STATUS_SUCCESS && count > 0;
    plan.algorithm = result.algo;
    return plans_.emplace(key, plan).first->second;
  }

  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  std::map<std::tuple<int64_t, int64_t, int64_t, DType, DType, bool, bool, bool>, Plan> plans_;
};

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

bool multiply_by_library(Gpu& gpu, const Product& p) {
  const int64_t per16 = p.type == DType::bf16 ? 8 : 4;  // elements of 16 bytes: rows must begin at multiples
  if ((p.a_transposed ? p.m : p.k) % per16 != 0 || (p.b_transposed ? p.k : p.n) % per16 != 0 ||
      p.n % 8 != 0) {
    return false;
  }
  if (!aligned(p.a) || !aligned(p.b) || !aligned(p.d)) return false;
  if (!library().found) return false;
  std::shared_ptr<void>& multiplier = gpu.multiplier_state();
  if (!multiplier) multiplier = std::make_shared<Multiplier>(gpu);
  return static_cast<Multiplier*>(multiplier.get())->multiply(gpu, p);
}

}  // namespace rwkvx::cuda

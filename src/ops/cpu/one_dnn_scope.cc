#include "ops/cpu/one_dnn_scope.h"

#include <omp.h>

#include <initializer_list>

namespace rwkvx::cpu {

OneDnnScope::OneDnnScope() : team_(omp_get_max_threads()) {
  omp_set_num_threads(1);
  sigset_t waiting;
  sigfillset(&waiting);
  for (const int of_this_thread : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
    sigdelset(&waiting, of_this_thread);
  }
  ::pthread_sigmask(SIG_BLOCK, &waiting, &signals_);
}

OneDnnScope::~OneDnnScope() {
  ::pthread_sigmask(SIG_SETMASK, &signals_, nullptr);
  omp_set_num_threads(team_);
}

}  // namespace rwkvx::cpu

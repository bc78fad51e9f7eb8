#include <sched.h>

#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "ops/cpu/thread_pool.h"

namespace rwkvx::cpu {
namespace {

int cores_of_quota(double quota, double period) {
  if (quota <= 0 || period <= 0) return INT32_MAX;
  return std::max(1, static_cast<int>(quota / period + 0.999));
}

int cgroup_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;  // "max 100000" has no quota
  if (!(file >> quota >> period)) return INT32_MAX;
  return cores_of_quota(quota, period);
}

int cgroup_v1() {
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota = 0, period = 0;  // −1: none
  if (!(quota_file >> quota) || !(period_file >> period)) return INT32_MAX;
  return cores_of_quota(quota, period);
}

/// The process's own group and every one above it.
int cgroup_limit() {
  int cores = std::min(cgroup_v1(), cgroup_v2("/sys/fs/cgroup"));
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    if (line.rfind("0::/", 0) != 0) continue;
    for (std::string path = line.substr(3); path.size() > 1; path.resize(path.rfind('/'))) {
      cores = std::min(cores, cgroup_v2("/sys/fs/cgroup" + path));
    }
  }
  return cores;
}

}  // namespace

int usable_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cores = CPU_COUNT(&mask);
  return std::max(1, std::min(cores, cgroup_limit()));
}

}  // namespace rwkvx::cpu

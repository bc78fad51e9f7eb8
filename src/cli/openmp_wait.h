#pragma once

namespace rwkvx::cli {

/// Starts the program again with GNU OpenMP told to wait less busily, unless the environment already says how
/// to wait (GOMP_SPINCOUNT, OMP_WAIT_POLICY); it reads that before main() and only there. Returns if nothing
/// needs doing or nothing can be done. Waiting threads spin for milliseconds by default, which steals the
/// cores from the very threads they wait for as soon as the machine has other work:
/// docs/decisions/0008-short-spinning.md.
void limit_openmp_spinning(char** argv);

}  // namespace rwkvx::cli

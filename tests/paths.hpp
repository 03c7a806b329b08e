#pragma once

// Where this checkout and its programs are: only paths.cpp is compiled with that, so that compiler caches serve all
// other files to every checkout.

#include <string>

namespace shardwright {

/// Absolute path of a file or folder of the repository; "" is its root.
std::string inSource(const std::string& path);
const char* shardplanProgram();
const char* shardrunProgram(); // "" in a build without the executor
const char* mpiexecProgram();  // "" in a build without MPI

} // namespace shardwright

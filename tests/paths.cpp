#include "tests/paths.hpp"

namespace shardwright {

std::string inSource(const std::string& path)
{
    return path.empty() ? SHARDWRIGHT_SOURCE_DIR : SHARDWRIGHT_SOURCE_DIR "/" + path;
}

const char* shardplanProgram()
{
    return SHARDWRIGHT_SHARDPLAN;
}

const char* shardrunProgram()
{
#ifdef SHARDWRIGHT_SHARDRUN
    return SHARDWRIGHT_SHARDRUN;
#else
    return "";
#endif
}

const char* mpiexecProgram()
{
#ifdef SHARDWRIGHT_MPIEXEC
    return SHARDWRIGHT_MPIEXEC;
#else
    return "";
#endif
}

} // namespace shardwright

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

} // namespace shardwright

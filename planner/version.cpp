#include "planner/version.hpp"

namespace shardwright {

const char* version()
{
    return "0.1.0";
}

} // namespace shardwright

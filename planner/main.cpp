#include <fmt/core.h>

#include "planner/version.hpp"

int main()
{
    fmt::print("shardplan {}\n", shardwright::version());
    return 0;
}

#include "planner/cli/program.hpp"

int main(int argc, char** argv)
{
    return shardwright::cli::runShardplan(argc, argv);
}

#include "executor/cli/program.hpp"

int main(int argc, char** argv)
{
    return shardwright::cli::runShardrun(argc, argv);
}

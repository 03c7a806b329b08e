// Prints "name<TAB>extent,extent,..." for every parameter of a model, for
// tests/conformance/models_against_transformers.py.

#include <exception>

#include <fmt/format.h>

#include "core/model_file.hpp"

int main(int argc, char** argv)
{
    if (argc != 2) {
        fmt::print(stderr, "usage: list_parameters ID|FOLDER|FILE\n");
        return 2;
    }
    try {
        for (const auto& parameter : shardwright::listParameters(shardwright::readModel(argv[1])))
            fmt::print("{}\t{}\n", parameter.name, fmt::join(parameter.shape, ","));
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 2;
    }
    return 0;
}

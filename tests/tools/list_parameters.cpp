// Lists a model for the comparison with transformers and peft (tests/conformance/models_against_transformers.py):
//     list_parameters ID|FOLDER|FILE [LORA_RANK [TARGET ...]]
// prints "block<TAB>prefix<TAB>class" per block and
// "parameter<TAB>name<TAB>extent,extent,...<TAB>trainable|frozen" per parameter.

#include <exception>
#include <string>

#include <fmt/format.h>

#include "core/model_file.hpp"

int main(int argc, char** argv)
{
    using namespace shardwright;
    if (argc < 2) {
        fmt::print(stderr, "usage: list_parameters ID|FOLDER|FILE [LORA_RANK [TARGET ...]]\n");
        return 2;
    }
    try {
        Model model = readModel(argv[1]);
        if (argc > 2) {
            Lora lora;
            lora.rank = std::stoll(argv[2]);
            lora.targetModules.assign(argv + 3, argv + argc);
            model = applyLora(model, lora, "command line", "TARGET");
        }
        std::int64_t block = 0;
        for (std::size_t position = 0; position < model.layers.size(); ++position)
            if (const LayerType& type = model.layer(position); type.kind == LayerKind::Block) {
                fmt::print("block\t{}\t{}\n", fmt::format(fmt::runtime(type.prefix), block), type.className);
                ++block;
            }
        for (const NamedParameter& parameter : listParameters(model))
            fmt::print("parameter\t{}\t{}\t{}\n", parameter.name, fmt::join(parameter.shape, ","),
                       parameter.trainable ? "trainable" : "frozen");
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 2;
    }
    return 0;
}

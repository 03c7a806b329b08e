// The reader of Accelerate's YAML: any text gives a configuration or an InputError that says where, nothing else; what
// was accepted converts to every format or is refused in words. The DeepSpeed file that a YAML may name is fixed.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "planner/configs/configs.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    using namespace shardwright;
    const ConfigFileReader readFile = [](const std::string&) {
        return std::string(R"({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})");
    };
    try {
        const ImportedConfig config = readAccelerateYaml(std::string(data, data + size), "fuzz.yaml", {}, readFile);
        for (const auto& [format, name] : EnumNames<ConfigFormat>::table) {
            try {
                convertConfig(config, format);
            } catch (const InputError& refused) {
                if (refused.findings().empty())
                    std::abort();
            }
        }
    } catch (const InputError& error) {
        if (error.findings().empty() || error.findings().front().what.empty())
            std::abort();
    }
    return 0;
}

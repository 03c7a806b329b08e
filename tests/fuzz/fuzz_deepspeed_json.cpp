// The reader of ds_config.json: any text gives a configuration or an InputError that says where, nothing else; and what
// was accepted is written and read again with the same options.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/json_cursor.hpp"
#include "planner/configs/configs.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    using namespace shardwright;
    try {
        DeepSpeedContext context;
        if (size > 0 && data[0] % 2 == 0) {
            context.world = 8;
            context.hiddenSize = 4096;
        }
        const ImportedConfig config = readDeepSpeedJson(std::string(data, data + size), "fuzz.json", context);
        const ConfigExport written = writeConfig(config.run, ConfigFormat::DeepSpeed);
        const ImportedConfig again = readDeepSpeedJson(written.files.front().text, "written.json");
        const ConfigExport twice = writeConfig(again.run, ConfigFormat::DeepSpeed);
        if (twice.files.front().text != written.files.front().text)
            std::abort();
    } catch (const InputError& error) {
        if (error.findings().empty() || error.findings().front().what.empty())
            std::abort();
    }
    return 0;
}

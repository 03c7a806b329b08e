// Any text as a config.json: the reader gives a model or an InputError, nothing else.

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    const std::string text(reinterpret_cast<const char*>(data), size);
    try {
        const shardwright::Json config = shardwright::parseJson(text, "fuzz");
        const shardwright::Model model = shardwright::modelFromJson(config, "fuzz", "fuzz");
        model.parameters();
        model.activeParameters();
        model.largestTensor();
    } catch (const shardwright::InputError&) {
    }
    return 0;
}

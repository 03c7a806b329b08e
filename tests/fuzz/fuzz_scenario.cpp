// The scenario reader: any text gives a scenario or an InputError that says where, nothing else; and what was accepted
// is written and read again unchanged. Models and clusters stand inline: a name or a path would open files.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"

namespace {

using namespace shardwright;

void replaceReference(Json& scenario, const char* key, const char* mark)
{
    const auto found = scenario.find(key);
    if (found != scenario.end() && !(found->is_object() && found->contains(mark)))
        *found = Json::object({{mark, "llama"}});
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    try {
        Json json = parseJson(std::string(data, data + size), "fuzz.json");
        if (json.is_object()) {
            replaceReference(json, "model", "model_type");
            replaceReference(json, "cluster", "gpu");
        }
        const Json written = toJson(scenarioFromJson(json, "fuzz.json"));
        if (toJson(scenarioFromJson(written, "fuzz.json")) != written)
            std::abort();
    } catch (const InputError& error) {
        if (error.findings().empty() || error.findings().front().what.empty())
            std::abort();
    }
    return 0;
}

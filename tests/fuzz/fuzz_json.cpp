// The JSON parser under every reader: any bytes give a document or an InputError that says where, nothing else; and
// what was accepted means the same when written and read again.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/json_cursor.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    using namespace shardwright;
    const std::string text(data, data + size);
    for (const bool comments : {false, true}) {
        JsonSyntax syntax;
        syntax.comments = comments;
        try {
            const Json json = parseJson(text, "fuzz.json", syntax);
            if (parseJson(json.dump(), "again.json", syntax) != json)
                std::abort();
        } catch (const InputError& error) {
            if (error.findings().empty() || error.findings().front().what.empty())
                std::abort();
        }
    }
    return 0;
}

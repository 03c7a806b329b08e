// Headers of safetensors files: any bytes give a header or an InputError, and every tensor of an accepted one lies
// within the file.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/diagnostics.hpp"
#include "executor/state/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    using namespace shardwright;
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    try {
        const SafetensorsHeader header = safetensorsHeader(bytes, static_cast<std::int64_t>(size), "fuzz");
        for (const StoredTensor& tensor : header.tensors)
            if (tensor.begin < 8 || tensor.begin > tensor.end || tensor.end > static_cast<std::int64_t>(size))
                std::abort();
    } catch (const InputError& error) {
        if (error.findings().empty() || error.findings().front().what.empty())
            std::abort();
    }
    return 0;
}

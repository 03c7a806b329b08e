#pragma once

// The name of JSON, for headers that only pass it on: the library's own header is a second of every compilation.

#include <nlohmann/json_fwd.hpp>

namespace shardwright {

using Json = nlohmann::ordered_json; // keys keep their order

class JsonCursor;

} // namespace shardwright

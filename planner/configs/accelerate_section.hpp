#pragma once

// fsdp_config, deepspeed_config and parallelism_config of an Accelerate YAML: the launcher sets each key as an
// argument, mostly as text, so "false", False and 0 all arrive.

#include <string>
#include <vector>

#include "core/json_cursor.hpp"

namespace shardwright {

class AccelerateSection {
public:
    /// `prefix` is what the launcher puts before keys that lack it ("fsdp_"); empty: none.
    AccelerateSection(JsonCursor object, std::string prefix) : m_object(object), m_prefix(std::move(prefix)) {}

    /// The value of `key`, with or without the prefix. null and "" count as absent.
    std::optional<JsonCursor> find(const std::string& key);
    bool has(const std::string& key) { return find(key).has_value(); }

    std::optional<bool> flag(const std::string& key);
    std::optional<std::int64_t> integer(const std::string& key, std::int64_t minimum, std::int64_t maximum);

    /// One of `names` in any case, or its number counted from 1; the index from 0.
    std::optional<std::size_t> choice(const std::string& key, const std::vector<std::string>& names);

    /// The keys that nobody asked for.
    std::vector<std::string> unreadKeys() const;
    const JsonCursor& object() const { return m_object; }

private:
    JsonCursor m_object;
    std::string m_prefix;
    std::vector<std::string> m_read;
};

} // namespace shardwright

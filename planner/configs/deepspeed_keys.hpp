#pragma once

// The top level of DeepSpeed's configuration file, key by key: 0.19.6, and what later releases removed.

#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

enum class KeyUse : std::uint8_t {
    Read,          // a plan follows it
    WithoutEffect, // DeepSpeed reads it; a plan does not depend on it
    NotPlanned,    // would change what a plan computes, if plans knew it
    Removed,       // refused since `removedIn`
    Unknown        // DeepSpeed reads no such key
};

struct DeepSpeedKey {
    KeyUse use = KeyUse::Unknown;
    std::string_view removedIn{}; // the release
};

DeepSpeedKey deepSpeedKey(const std::string& key);

/// All that are not unknown.
std::vector<std::string> deepSpeedKeys();

} // namespace shardwright

#pragma once

// Classes of buffers in host memory, as DeepSpeed's stages offload to it.

#include "core/schedule.hpp"

namespace shardwright {

constexpr BufferSpec hostSpec(std::string_view name, std::string_view formula, std::string_view source,
                              Category category, Place place, Lifetime lifetime = Lifetime::Persistent)
{
    return {name, formula, source, category, place, Stream::Host, lifetime};
}

/// One buffer, page-locked or pageable as pin_memory says.
struct HostSpec {
    BufferSpec pinned;
    BufferSpec pageable;
    const BufferSpec& of(bool isPinned) const { return isPinned ? pinned : pageable; }
};

/// What a buffer is called, and the formula of its bytes.
struct HostText {
    std::string_view name;
    std::string_view formula;
};

constexpr HostSpec hostPair(HostText pinned, HostText pageable, std::string_view source, Category category)
{
    return {hostSpec(pinned.name, pinned.formula, source, category, Place::HostPinned),
            hostSpec(pageable.name, pageable.formula, source, category, Place::HostPageable)};
}

constexpr HostSpec hostPair(HostText either, std::string_view source, Category category)
{
    return hostPair(either, either, source, category);
}

} // namespace shardwright

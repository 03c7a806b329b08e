#include "executor/engine/memory_cache.hpp"

#include <algorithm>
#include <new>

namespace shardwright {

namespace {

constexpr std::align_val_t kAlignment{64};

/// How far above the most that was taken at once memory in use may stand. measured: a step of a llama of 39 million
/// parameters under FSDP2 took 32,000 fresh pages a rank with nothing above it, none with half as much again.
std::size_t roomFor(std::size_t most)
{
    return most + most / 2;
}

} // namespace

MemoryCache::~MemoryCache()
{
    for (const auto& [size, blocks] : m_blocks)
        for (std::byte* block : blocks)
            ::operator delete(block, kAlignment);
}

MemoryCache::Block MemoryCache::take(std::size_t bytes)
{
    const auto same = m_blocks.find(bytes);
    std::byte* block = nullptr;
    if (same != m_blocks.end()) {
        block = same->second.back();
        same->second.pop_back();
        if (same->second.empty())
            m_blocks.erase(same);
        m_free -= bytes;
    } else {
        // The largest go first: the fewest that make the room.
        while (m_free > 0 && m_taken + m_free + bytes > std::max(roomFor(m_most), m_taken + bytes)) {
            const auto largest = std::prev(m_blocks.end());
            ::operator delete(largest->second.back(), kAlignment);
            largest->second.pop_back();
            m_free -= largest->first;
            if (largest->second.empty())
                m_blocks.erase(largest);
        }
        block = static_cast<std::byte*>(::operator new(bytes, kAlignment));
    }
    m_taken += bytes;
    m_most = std::max(m_most, m_taken);
    return {block, {this, bytes}};
}

void MemoryCache::give(std::byte* block, std::size_t bytes)
{
    m_taken -= bytes;
    if (bytes == 0) { // nothing to hold back
        ::operator delete(block, kAlignment);
        return;
    }
    m_blocks[bytes].push_back(block);
    m_free += bytes;
}

} // namespace shardwright

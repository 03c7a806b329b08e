#pragma once

// Memory of buffers that come and go: a step makes the same ones again and again, and pages fresh from the system cost
// as much as computing on them.

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

namespace shardwright {

/// Hands out blocks, those of equal size again. What it holds back never raises the memory in use above half as much
/// again as the highest that was handed out at once. Not thread-safe: one a rank.
class MemoryCache {
public:
    MemoryCache() = default;
    ~MemoryCache();
    MemoryCache(const MemoryCache&) = delete;
    MemoryCache& operator=(const MemoryCache&) = delete;

    struct GiveBack {
        MemoryCache* cache = nullptr;
        std::size_t bytes = 0;
        void operator()(std::byte* memory) const { cache->give(memory, bytes); }
    };
    using Block = std::unique_ptr<std::byte, GiveBack>; // the cache must outlive it

    /// Aligned to a cache line, which suits any vector register. Nothing is said of its content.
    Block take(std::size_t bytes);

    std::size_t heldBack() const { return m_free; }

private:
    void give(std::byte* block, std::size_t bytes);

    std::map<std::size_t, std::vector<std::byte*>> m_blocks; // free ones, by size
    std::size_t m_free = 0;
    std::size_t m_taken = 0;
    std::size_t m_most = 0; // that was ever taken at once
};

} // namespace shardwright

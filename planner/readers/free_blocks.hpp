#pragma once

// Blocks of the caching allocator's segments, and the free ones in the order in which it looks for one.

#include <algorithm>
#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

namespace shardwright {

/// A stretch of a segment, live or free; neighbours by index.
struct Block {
    std::int64_t size = 0;
    std::int64_t offset = 0; // within its segment
    int segment = -1;
    int before = -1;
    int after = -1;
    bool live = false;
};

/// The free blocks of one pool in the allocator's order: by size, then by address (segments are numbered as they are
/// mapped). Few sizes recur over and over, so blocks of one size lie together.
class FreeBlocks {
public:
    struct Place {
        std::size_t size = 0; // into m_sizes
        std::size_t at = 0;   // into its blocks
    };

    /// The first of at least `size` bytes, if there is one.
    std::optional<Place> first(std::int64_t size) const { return firstFrom(positionOf(size)); }
    std::optional<Place> next(const Place& place) const
    {
        if (place.at > 0)
            return Place{place.size, place.at - 1};
        return firstFrom(place.size + 1);
    }
    int block(const Place& place) const { return m_sizes[place.size].blocks[place.at].block; }

    void insert(const Block& block, int index)
    {
        std::size_t position = positionOf(block.size);
        if (position == m_sizes.size() || m_sizes[position].size != block.size) {
            purge();
            position = positionOf(block.size);
            m_sizes.insert(m_sizes.begin() + static_cast<std::ptrdiff_t>(position), {block.size, {}});
        }
        std::vector<Entry>& blocks = m_sizes[position].blocks;
        m_empty -= blocks.empty() && m_sizes[position].emptied ? 1 : 0;
        m_sizes[position].emptied = false;
        blocks.insert(placeOf(blocks, addressOf(block)), {addressOf(block), index});
    }
    void erase(const Place& place)
    {
        OfSize& of = m_sizes[place.size];
        of.blocks.erase(of.blocks.begin() + static_cast<std::ptrdiff_t>(place.at));
        of.emptied = of.blocks.empty();
        m_empty += of.emptied ? 1 : 0;
    }
    void erase(const Block& block)
    {
        const std::size_t position = positionOf(block.size);
        std::vector<Entry>& blocks = m_sizes[position].blocks;
        erase(Place{position, static_cast<std::size_t>(placeOf(blocks, addressOf(block)) - blocks.begin())});
    }
    std::vector<int> all() const
    {
        std::vector<int> indices;
        for (const OfSize& of : m_sizes)
            for (const Entry& entry : of.blocks)
                indices.push_back(entry.block);
        return indices;
    }

private:
    struct Address {
        int segment;
        std::int64_t offset;
        auto operator<=>(const Address&) const = default;
    };
    struct Entry {
        Address address;
        int block;
    };
    struct OfSize {
        std::int64_t size;
        std::vector<Entry> blocks; // the highest address first: the next to be taken stands at the end
        bool emptied = false;
    };

    static Address addressOf(const Block& block) { return {block.segment, block.offset}; }
    static std::vector<Entry>::iterator placeOf(std::vector<Entry>& blocks, const Address& address)
    {
        return std::lower_bound(blocks.begin(), blocks.end(), address,
                                [](const Entry& entry, const Address& wanted) { return entry.address > wanted; });
    }
    std::size_t positionOf(std::int64_t size) const
    {
        const auto at = std::lower_bound(m_sizes.begin(), m_sizes.end(), size,
                                         [](const OfSize& of, std::int64_t wanted) { return of.size < wanted; });
        return static_cast<std::size_t>(at - m_sizes.begin());
    }
    std::optional<Place> firstFrom(std::size_t position) const
    {
        for (; position < m_sizes.size(); ++position)
            if (!m_sizes[position].blocks.empty())
                return Place{position, m_sizes[position].blocks.size() - 1};
        return std::nullopt;
    }
    /// Sizes stay when their last block goes, for it mostly comes back; not where they outnumber the others.
    void purge()
    {
        constexpr std::size_t kFew = 32;
        if (m_empty < kFew || 2 * m_empty < m_sizes.size())
            return;
        m_sizes.erase(
            std::remove_if(m_sizes.begin(), m_sizes.end(), [](const OfSize& of) { return of.blocks.empty(); }),
            m_sizes.end());
        m_empty = 0;
    }

    std::vector<OfSize> m_sizes;
    std::size_t m_empty = 0;
};

} // namespace shardwright

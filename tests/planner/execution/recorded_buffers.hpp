#pragma once

// Buffers of a recorded schedule on all ranks, with numbers in place of tensors.

#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/layout.hpp"
#include "core/schedule.hpp"
#include "core/training.hpp"

namespace shardwright {

/// What no rank may use: padding, parts that a reduction leaves undefined, buffers that nothing was written to.
constexpr double kVoid = std::numeric_limits<double>::quiet_NaN();

/// What went wrong, with where it happened.
class Problems {
public:
    template <typename... Arguments> void add(fmt::format_string<Arguments...> text, Arguments&&... arguments)
    {
        if (!full())
            m_texts.push_back(m_where + fmt::format(text, std::forward<Arguments>(arguments)...));
    }
    void setPlace(std::string where) { m_where = std::move(where); }
    bool none() const { return m_texts.empty(); }
    bool full() const { return m_texts.size() >= 12; }
    const std::vector<std::string>& texts() const { return m_texts; }

private:
    std::string m_where;
    std::vector<std::string> m_texts;
};

struct ElementAt {
    std::int64_t element; // of all parameters, one after another
    std::size_t at;       // in the buffer
};
using Elements = std::vector<ElementAt>;
using Values = std::vector<double>;

/// The live buffers. References and pointers into the schedule, which must outlive it.
class RecordedBuffers {
public:
    struct Buffer {
        std::vector<Values> ofRank;
        bool written = false;
        std::int64_t stamp = 0; // when it was written last
    };

    RecordedBuffers(const Schedule& schedule, const Model& model, Optimizer optimizer, std::int64_t ranks);

    const std::vector<NamedParameter>& parameters() const { return m_parameters; }
    std::int64_t ranks() const { return m_ranks; }
    std::size_t elements() const { return m_elements; } // of all parameters
    std::int64_t firstElement(std::int32_t tensor) const { return m_firstElement[static_cast<std::size_t>(tensor)]; }
    int moments() const; // that the optimizer keeps

    const BufferClass& classOf(BufferId buffer) const;
    std::string nameOf(BufferId buffer) const;
    const Content* contentOf(BufferId buffer) const;
    const Content& contentAt(ContentId content) const { return m_schedule.contents[static_cast<std::size_t>(content)]; }
    ContentId contentIdOf(BufferId buffer) const { return m_contentOf[static_cast<std::size_t>(buffer)]; }
    const Group& groupAt(GroupId group) const { return m_schedule.sizes.groups[static_cast<std::size_t>(group)]; }
    /// The ranks of the group that `rank` is in.
    std::vector<std::int64_t> members(GroupId group, std::int64_t rank) const;
    std::int64_t placeIn(const Content& content, std::int64_t rank) const;

    Bytes encodedBytes(const Content& content, std::int64_t elements) const;
    Bytes bytesOf(const Content& content) const;
    std::int64_t elementsOf(const Layout& layout) const { return shardwright::elementsOf(layout, m_parameters); }

    void make(BufferId buffer);
    void hold(BufferId buffer, ContentId content);
    bool isLive(BufferId buffer) const { return m_live.count(buffer) > 0; }
    /// False where it is not live.
    bool drop(BufferId buffer) { return m_live.erase(buffer) > 0; }
    void rename(BufferId from, BufferId to);
    Buffer& at(BufferId buffer) { return m_live.at(buffer); }
    const std::map<BufferId, Buffer>& live() const { return m_live; }
    std::set<BufferId> liveIds() const;

    Elements elementsIn(const Layout& layout, std::int64_t part) const;
    const Elements& elementsOn(BufferId buffer, std::int64_t rank);
    Values& valuesOf(BufferId buffer, std::int64_t rank) { return at(buffer).ofRank[static_cast<std::size_t>(rank)]; }
    /// By element; void where the buffer does not hold it.
    Values spread(BufferId buffer, std::int64_t rank);
    std::vector<bool> heldBy(BufferId buffer, std::int64_t rank);
    /// Where a tensor stands in one piece in a buffer; -1: it does not.
    std::int64_t wholeAt(std::int32_t tensor, BufferId buffer, std::int64_t rank) const;

private:
    const Schedule& m_schedule;
    std::vector<NamedParameter> m_parameters;
    Optimizer m_optimizer;
    std::int64_t m_ranks;
    std::vector<ContentId> m_contentOf;
    std::vector<std::int64_t> m_firstElement; // by tensor
    std::size_t m_elements = 0;
    std::map<std::pair<ContentId, std::int64_t>, Elements> m_elementsOn; // by content and place
    std::map<BufferId, Buffer> m_live;
};

} // namespace shardwright

#pragma once

// Moves and collectives of a recorded schedule, between the numbers of all ranks.

#include "tests/planner/execution/recorded_buffers.hpp"

namespace shardwright {

class RecordedTransfers {
public:
    RecordedTransfers(RecordedBuffers& buffers, Problems& problems) : m_buffers(buffers), m_problems(problems) {}

    /// Carries out an action of those that move or reduce in an operation. False: it is none of them.
    bool act(const Action& action, const Op& op, const std::vector<BufferId>& reads,
             const std::vector<BufferId>& writes);

    /// Bytes that actions since the last call sent between ranks or places, as payloads count them: whole tensors.
    Bytes takeMoved();

private:
    void transfer(const std::vector<BufferId>& reads, const std::vector<BufferId>& writes, bool adds);
    void countLink(BufferId read, BufferId write, std::int64_t elements);
    void allGather(const Action& action, BufferId read, BufferId write);
    void reduceScatter(const Action& action, BufferId read, BufferId write);
    void countContent(ContentId content);
    /// In place, of the tensors of the action's content.
    void reduceScatterWithin(const Action& action, BufferId write);
    /// Every rank gets the group's versions of what it is to hold. Here at once their mean, which is what is read.
    void allToAll(const Action& action, BufferId read, BufferId write);
    /// Whether what goes to the rank in `place` is what it is to hold, in its order.
    bool fits(BufferId read, std::int64_t sender, BufferId write, std::int64_t receiver, std::int64_t place);
    void allReduce(const Action& action, const std::vector<BufferId>& writes);
    void reduceTo(const Action& action, const Op& op, BufferId write);
    void broadcast(const Action& action, BufferId write);
    bool partsBelong(const Content& content, GroupId group);
    std::vector<Values> means(BufferId buffer, GroupId group);

    RecordedBuffers& m_buffers;
    Problems& m_problems;
    Bytes m_moved;
};

} // namespace shardwright

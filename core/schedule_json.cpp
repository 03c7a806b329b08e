#include "core/schedule_json.hpp"

#include <utility>

#include <fmt/format.h>

#include "core/json_cursor.hpp"

namespace shardwright {

template <> struct EnumNames<Lifetime> {
    static constexpr std::array<std::pair<Lifetime, std::string_view>, 3> table{
        {{Lifetime::Persistent, "persistent"},
         {Lifetime::FromFirstStep, "from-first-step"},
         {Lifetime::Transient, "transient"}}};
};
template <> struct EnumNames<BufferChange> {
    static constexpr std::array<std::pair<BufferChange, std::string_view>, 4> table{{{BufferChange::Allocate, "+"},
                                                                                     {BufferChange::Free, "-"},
                                                                                     {BufferChange::FreeDeferred, "~"},
                                                                                     {BufferChange::Reclaim, "!"}}};
};

namespace {

template <typename T, typename Write> Json rowsOf(const std::vector<T>& items, Write write)
{
    Json rows = Json::array();
    for (const T& item : items)
        rows.push_back(write(item));
    return rows;
}

/// Reads one row of values, in order; the first problem of a row is told, with its place.
class RowReader {
public:
    /// Values that are mostly the same may be left out at the row's end: `optional` of them.
    RowReader(const JsonCursor& row, std::size_t length, std::size_t optional) : m_row(row)
    {
        m_good = row.expectArray();
        if (m_good && (row.json().size() > length || row.json().size() + optional < length)) {
            row.complain(fmt::format("{} values", row.json().size()), fmt::format("{} values", length));
            m_good = false;
        }
        if (m_good)
            m_elements = row.elements();
    }

    std::int64_t integer(std::int64_t minimum, std::int64_t maximum)
    {
        if (!m_good)
            return minimum;
        const auto value = next().asInteger(minimum, maximum);
        m_good = value.has_value();
        return value.value_or(minimum);
    }
    /// An index below `size`, or -1.
    template <typename Id = std::int32_t> Id id(std::size_t size)
    {
        return static_cast<Id>(integer(-1, static_cast<std::int64_t>(size) - 1));
    }
    template <typename E> E name()
    {
        const auto value = m_good ? next().template asEnum<E>() : std::nullopt;
        m_good &= value.has_value();
        return value.value_or(E{});
    }
    std::string text()
    {
        const auto value = m_good ? next().asString() : std::nullopt;
        m_good &= value.has_value();
        return value.value_or("");
    }
    bool flag()
    {
        const auto value = m_good ? next().asBool() : std::nullopt;
        m_good &= value.has_value();
        return value.value_or(false);
    }
    JsonCursor next() { return m_elements[m_next++]; }
    bool atEnd() const { return m_next == m_elements.size(); }
    bool good() const { return m_good; }
    void complain(const std::string& what, const std::string& expected)
    {
        m_row.complain(what, expected);
        m_good = false;
    }

private:
    JsonCursor m_row;
    std::vector<JsonCursor> m_elements;
    std::size_t m_next = 0;
    bool m_good = false;
};

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostBytes = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMostRanks = 1 << 20;

class ScheduleReader {
public:
    ScheduleReader(const JsonCursor& cursor, const std::vector<NamedParameter>& parameters, std::int64_t layers,
                   ExecutablePlan& plan)
        : m_cursor(cursor), m_parameters(parameters), m_layers(layers), m_plan(plan), m_schedule(plan.schedule)
    {
    }

    void read()
    {
        if (!m_cursor.expectObject())
            return;
        m_cursor.rejectUnknownKeys({"groups", "payloads", "classes", "contents", "buffers", "content_of", "operands",
                                    "events", "waits", "actions", "ops", "segments"});
        rows("groups", 4, [&](RowReader& row) { group(row); });
        rows("payloads", 6, [&](RowReader& row) { payload(row); });
        rows("classes", 9, [&](RowReader& row) { bufferClass(row); });
        rows("contents", 13, 1, [&](RowReader& row) { content(row); });
        integers("buffers", 0, m_schedule.sizes.buffers.size(), m_schedule.buffers);
        integers("content_of", -1, m_schedule.contents.size(), m_schedule.contentOf);
        integers("operands", 0, m_schedule.buffers.size(), m_schedule.operands);
        rows("events", 2, [&](RowReader& row) {
            const auto buffer = static_cast<BufferId>(row.integer(0, last(m_schedule.buffers.size())));
            m_schedule.events.push_back({buffer, row.name<BufferChange>()});
        });
        rows("waits", 2, [&](RowReader& row) {
            const auto op = static_cast<OpId>(row.integer(0, kMost));
            m_schedule.waits.push_back({op, row.flag()});
        });
        rows("actions", 11, [&](RowReader& row) { action(row); });
        rows("ops", 16, [&](RowReader& row) { op(row); });
        rows("segments", 4, [&](RowReader& row) { segment(row); });
        if (!m_cursor.findings().empty())
            return;
        if (m_schedule.contentOf.size() != m_schedule.buffers.size())
            m_cursor.complain(
                fmt::format("{} contents of {} buffers", m_schedule.contentOf.size(), m_schedule.buffers.size()),
                "one for each buffer");
        if (m_schedule.actions.empty() || m_schedule.segments.empty())
            m_cursor.complain("no actions or no segments: nothing to carry out", "a schedule recorded for execution");
        else if (m_schedule.segments.front().repeat == 0 || m_schedule.segments.back().repeat == 0)
            m_cursor.complain("the first or the last segment happens 0 times",
                              "0 only for a segment that stands in for the one behind it");
        checkLifetimes();
    }

private:
    static std::int64_t last(std::size_t size) { return static_cast<std::int64_t>(size) - 1; }

    template <typename Read> void rows(const std::string& key, std::size_t length, Read read)
    {
        rows(key, length, 0, read);
    }
    template <typename Read> void rows(const std::string& key, std::size_t length, std::size_t optional, Read read)
    {
        const auto list = m_cursor.require(key, "a list of rows");
        if (!list || !list->expectArray())
            return;
        for (const JsonCursor& element : list->elements()) {
            RowReader row(element, length, optional);
            read(row);
            if (!row.good())
                return; // rows behind a broken one would be told wrong for its sake
        }
    }

    void integers(const std::string& key, std::int64_t minimum, std::size_t size, std::vector<std::int32_t>& target)
    {
        const auto list = m_cursor.require(key, "a list of numbers");
        if (!list || !list->expectArray())
            return;
        for (const JsonCursor& element : list->elements()) {
            const auto value = element.asInteger(minimum, last(size));
            if (!value)
                return;
            target.push_back(static_cast<std::int32_t>(*value));
        }
    }

    std::string_view keep(std::string text)
    {
        m_plan.texts.push_back(std::move(text));
        return m_plan.texts.back();
    }

    void group(RowReader& row)
    {
        Group group;
        group.name = keep(row.text());
        group.ranks = row.integer(1, kMostRanks);
        group.nodes = row.integer(1, kMostRanks);
        group.stride = row.integer(1, kMostRanks);
        if (row.good() && m_plan.ranks % (group.ranks * group.stride) != 0)
            row.complain(fmt::format("groups of {} ranks, {} apart, do not divide {} ranks", group.ranks, group.stride,
                                     m_plan.ranks),
                         "groups that all ranks belong to");
        m_schedule.sizes.groups.push_back(group);
    }

    void payload(RowReader& row)
    {
        Payload payload;
        payload.name = keep(row.text());
        payload.formula = keep(row.text());
        payload.source = keep(row.text());
        payload.bytes = Bytes(row.integer(0, kMostBytes));
        payload.native = row.name<DType>();
        payload.countsInPsi = row.flag();
        m_schedule.sizes.payloads.push_back(payload);
    }

    void bufferClass(RowReader& row)
    {
        BufferSpec spec;
        spec.name = keep(row.text());
        spec.formula = keep(row.text());
        spec.source = keep(row.text());
        spec.category = row.name<Category>();
        spec.place = row.name<Place>();
        spec.pool = row.name<Stream>();
        spec.lifetime = row.name<Lifetime>();
        m_plan.specs.push_back(spec);
        const Bytes bytes(row.integer(0, kMostBytes));
        const auto layerType = row.id<int>(m_plan.model.layerTypes.size());
        m_schedule.sizes.buffers.push_back({&m_plan.specs.back(), bytes, layerType});
    }

    void content(RowReader& row)
    {
        Content content;
        content.quantity = row.name<Quantity>();
        content.dtype = row.name<DType>();
        content.layout.cut = row.name<Cut>();
        content.layout.parts = row.integer(1, kMostRanks);
        content.layout.multiple = row.integer(1, kMost);
        content.layout.align = row.integer(1, kMost);
        content.layout.room = row.integer(0, kMostBytes);
        content.layout.allParts = row.flag();
        content.group = row.id<GroupId>(m_schedule.sizes.groups.size());
        content.codec = row.name<Codec>();
        content.block = row.integer(0, kMost);
        if (!row.good())
            return;
        const JsonCursor tensors = row.next();
        if (!tensors.expectArray())
            return;
        for (const JsonCursor& element : tensors.elements()) {
            const auto tensor = element.asInteger(0, last(m_parameters.size()));
            if (!tensor)
                return;
            content.layout.tensors.push_back(static_cast<std::int32_t>(*tensor));
        }
        if (!row.atEnd())
            content.versions = row.integer(1, kMostRanks);
        m_schedule.contents.push_back(std::move(content));
    }

    void action(RowReader& row)
    {
        Action action;
        action.verb = row.name<Verb>();
        action.kernel = row.name<Kernel>();
        action.reads = static_cast<std::uint16_t>(row.integer(0, 65535));
        action.writes = static_cast<std::uint16_t>(row.integer(0, 65535));
        action.firstOperand = static_cast<std::uint32_t>(row.integer(0, kMost));
        action.eventsBefore = static_cast<std::uint32_t>(row.integer(0, kMost));
        action.layer = static_cast<std::int32_t>(row.integer(-1, m_layers - 1));
        action.module = static_cast<std::int32_t>(row.integer(-1, 65535));
        action.gradient = row.id<BufferId>(m_schedule.buffers.size());
        action.group = row.id<GroupId>(m_schedule.sizes.groups.size());
        action.content = row.id<ContentId>(m_schedule.contents.size());
        if (row.good() && std::size_t{action.firstOperand} + action.reads + action.writes > m_schedule.operands.size())
            row.complain("its operands end behind the list of operands", "a range within the list");
        m_schedule.actions.push_back(action);
    }

    /// A range of a list, which must follow the one before it.
    template <typename T>
    void range(RowReader& row, std::uint32_t& first, std::uint32_t& count, const std::vector<T>& list,
               std::uint32_t begin)
    {
        first = static_cast<std::uint32_t>(row.integer(0, kMost));
        count = static_cast<std::uint32_t>(row.integer(0, kMost));
        if (row.good() && (first != begin || std::size_t{first} + count > list.size()))
            row.complain(
                fmt::format("a range from {} of {} leaves its list or does not follow the one before", first, count),
                fmt::format("one from {} to at most {}", begin, list.size()));
    }

    void op(RowReader& row)
    {
        const Op before = m_schedule.ops.empty() ? Op{} : m_schedule.ops.back();
        Op op;
        op.kind = row.name<OpKind>();
        op.stream = row.name<Stream>();
        op.phase = row.name<Phase>();
        op.stage = static_cast<std::int16_t>(row.integer(-1, 32767));
        op.firstPart = static_cast<std::int16_t>(row.integer(-1, 32767));
        op.endPart = static_cast<std::int16_t>(row.integer(-1, 32767));
        op.layer = static_cast<std::int32_t>(row.integer(-1, m_layers - 1));
        op.payload = row.id<PayloadId>(m_schedule.sizes.payloads.size());
        op.group = row.id<GroupId>(m_schedule.sizes.groups.size());
        op.payloadCount = static_cast<std::int32_t>(row.integer(0, kMost));
        range(row, op.firstEvent, op.eventCount, m_schedule.events, before.firstEvent + before.eventCount);
        range(row, op.firstWait, op.waitCount, m_schedule.waits, before.firstWait + before.waitCount);
        range(row, op.firstAction, op.actionCount, m_schedule.actions, before.firstAction + before.actionCount);
        for (std::uint32_t i = 0; row.good() && i < op.waitCount; ++i)
            if (const OpId awaited = m_schedule.waits[op.firstWait + i].op;
                static_cast<std::size_t>(awaited) >= m_schedule.ops.size())
                row.complain(fmt::format("waits for operation {}", awaited), "one before it");
        if (row.good() && op.kind >= OpKind::AllGather && op.kind <= OpKind::AllToAll && op.group < 0)
            row.complain("a collective over no group", "the group it runs over");
        m_schedule.ops.push_back(op);
    }

    void segment(RowReader& row)
    {
        Segment segment;
        segment.name = keep(row.text());
        segment.firstOp = static_cast<std::uint32_t>(row.integer(0, static_cast<std::int64_t>(m_schedule.ops.size())));
        segment.endOp =
            static_cast<std::uint32_t>(row.integer(segment.firstOp, static_cast<std::int64_t>(m_schedule.ops.size())));
        segment.repeat = row.integer(0, kMost); // 0: a stand-in
        const std::uint32_t begin = m_schedule.segments.empty() ? 0 : m_schedule.segments.back().endOp;
        if (row.good() && segment.firstOp != begin)
            row.complain(fmt::format("begins at operation {}", segment.firstOp), fmt::format("operation {}", begin));
        m_schedule.segments.push_back(segment);
    }

    /// Every buffer comes to be once and goes at most once, and actions use what is there. A stand-in leaves it to the
    /// segment behind it to do so again.
    void checkLifetimes()
    {
        enum class State : std::uint8_t { Unborn, Live, Deferred, Gone };
        std::vector<State> states(m_schedule.buffers.size(), State::Unborn);
        std::vector<State> before; // the stand-in under way
        std::size_t standInEnd = 0;
        for (std::size_t i = 0; i < m_schedule.ops.size(); ++i) {
            const Op& op = m_schedule.ops[i];
            if (!before.empty() && i == standInEnd)
                states = std::exchange(before, {});
            for (const Segment& segment : m_schedule.segments)
                if (segment.repeat == 0 && segment.firstOp == i && segment.endOp > i) {
                    before = states;
                    standInEnd = segment.endOp;
                }
            const auto complain = [&](BufferId buffer, const std::string& what) {
                m_cursor.findings().add(fmt::format("{}/ops/{}", m_cursor.pointer(), i),
                                        fmt::format("buffer {} {}", buffer, what),
                                        "buffers that are allocated, used and freed in this order");
            };
            std::uint32_t event = 0;
            const auto playUpTo = [&](std::uint32_t end) {
                for (; event < end; ++event) {
                    const BufferEvent& change = m_schedule.events[op.firstEvent + event];
                    State& state = states[static_cast<std::size_t>(change.buffer)];
                    const bool possible = change.change == BufferChange::Allocate  ? state == State::Unborn
                                          : change.change == BufferChange::Reclaim ? state == State::Deferred
                                                                                   : state == State::Live;
                    if (!possible) {
                        complain(change.buffer, "is allocated or freed out of order");
                        return false;
                    }
                    state = change.change == BufferChange::Allocate       ? State::Live
                            : change.change == BufferChange::FreeDeferred ? State::Deferred
                                                                          : State::Gone;
                }
                return true;
            };
            for (std::uint32_t a = 0; a < op.actionCount; ++a) {
                const Action& action = m_schedule.actions[op.firstAction + a];
                if (action.eventsBefore > op.eventCount || !playUpTo(action.eventsBefore))
                    return action.eventsBefore > op.eventCount
                               ? complain(-1, "is not the trouble: an action stands behind the operation's events")
                               : void();
                for (std::uint32_t o = 0; o < std::uint32_t{action.reads} + action.writes; ++o) {
                    const BufferId buffer = m_schedule.operands[action.firstOperand + o];
                    if (states[static_cast<std::size_t>(buffer)] != State::Live)
                        return complain(buffer, "is used while it is not live");
                }
            }
            if (!playUpTo(op.eventCount))
                return;
        }
    }

    const JsonCursor& m_cursor;
    const std::vector<NamedParameter>& m_parameters;
    std::int64_t m_layers;
    ExecutablePlan& m_plan;
    Schedule& m_schedule;
};

} // namespace

Json toJson(const Schedule& schedule)
{
    Json json = Json::object();
    json["groups"] = rowsOf(schedule.sizes.groups, [](const Group& group) {
        return Json{group.name, group.ranks, group.nodes, group.stride};
    });
    json["payloads"] = rowsOf(schedule.sizes.payloads, [](const Payload& payload) {
        return Json{payload.name,          payload.formula,        payload.source,
                    payload.bytes.count(), nameOf(payload.native), payload.countsInPsi};
    });
    json["classes"] = rowsOf(schedule.sizes.buffers, [](const BufferClass& item) {
        const BufferSpec& spec = *item.spec;
        return Json{spec.name,          spec.formula,      spec.source,           nameOf(spec.category),
                    nameOf(spec.place), nameOf(spec.pool), nameOf(spec.lifetime), item.bytes.count(),
                    item.layerType};
    });
    json["contents"] = rowsOf(schedule.contents, [](const Content& content) {
        const Layout& layout = content.layout;
        Json row = {nameOf(content.quantity),
                    nameOf(content.dtype),
                    nameOf(layout.cut),
                    layout.parts,
                    layout.multiple,
                    layout.align,
                    layout.room,
                    layout.allParts,
                    content.group,
                    nameOf(content.codec),
                    content.block,
                    Json(layout.tensors)};
        if (content.versions != 1)
            row.push_back(content.versions);
        return row;
    });
    json["buffers"] = schedule.buffers;
    json["content_of"] = schedule.contentOf;
    json["operands"] = schedule.operands;
    json["events"] = rowsOf(schedule.events, [](const BufferEvent& event) {
        return Json{event.buffer, nameOf(event.change)};
    });
    json["waits"] = rowsOf(schedule.waits, [](const Wait& wait) { return Json{wait.op, wait.blocksHost}; });
    json["actions"] = rowsOf(schedule.actions, [](const Action& action) {
        return Json{nameOf(action.verb), nameOf(action.kernel), action.reads,  action.writes,
                    action.firstOperand, action.eventsBefore,   action.layer,  action.module,
                    action.gradient,     action.group,          action.content};
    });
    json["ops"] = rowsOf(schedule.ops, [](const Op& op) {
        return Json{nameOf(op.kind), nameOf(op.stream), nameOf(op.phase), op.stage,        op.firstPart,  op.endPart,
                    op.layer,        op.payload,        op.group,         op.payloadCount, op.firstEvent, op.eventCount,
                    op.firstWait,    op.waitCount,      op.firstAction,   op.actionCount};
    });
    json["segments"] = rowsOf(schedule.segments, [](const Segment& segment) {
        return Json{segment.name, segment.firstOp, segment.endOp, segment.repeat};
    });
    return json;
}

void readSchedule(const JsonCursor& cursor, const std::vector<NamedParameter>& parameters, std::int64_t layers,
                  ExecutablePlan& plan)
{
    ScheduleReader(cursor, parameters, layers, plan).read();
}

} // namespace shardwright

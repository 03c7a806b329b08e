#include "planner/report/trace_json.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright {

namespace {

constexpr int kSegmentTrack = 0; // streams follow

class TraceWriter {
public:
    void rank(std::size_t process, const TracedRank& traced)
    {
        m_process = process;
        m_rank = &traced;
        m_origin = std::numeric_limits<double>::infinity();
        for (std::size_t i = 0; i < ops().size(); ++i)
            if (runs(i))
                m_origin = std::min(m_origin, at(i).start);
        metadata("process_name", -1, {{"name", traced.name}});
        metadata("process_sort_index", -1, {{"sort_index", process}});
        track(kSegmentTrack, "step");
        segments();
        for (std::size_t stream = 0; stream < kStreamCount; ++stream)
            slices(static_cast<Stream>(stream));
        counters();
    }

    /// A track for each stage: the passes of its chunks, and behind them gradients and optimizer.
    void pipeline(std::size_t process, const PipelineTimeline& timeline)
    {
        m_process = process;
        m_origin = 0;
        metadata("process_name", -1, {{"name", "pipeline, all stages"}});
        metadata("process_sort_index", -1, {{"sort_index", -1}}); // above the ranks
        std::vector<double> ends(timeline.rest.size(), 0);
        for (std::size_t stage = 0; stage < ends.size(); ++stage)
            track(static_cast<int>(stage), fmt::format("stage {}", stage + 1));
        for (const PlayedAction& played : timeline.actions) {
            const PipelineAction& action = played.action;
            const char* pass = action.forward ? "forward" : "backward";
            slice(static_cast<int>(played.stage), fmt::format("{} {}", pass, action.microBatch + 1), pass,
                  {played.start, played.end}, {{"micro_batch", action.microBatch + 1}, {"chunk", action.chunk + 1}});
            ends[static_cast<std::size_t>(played.stage)] = played.end;
        }
        for (std::size_t stage = 0; stage < ends.size(); ++stage)
            if (timeline.rest[stage] > 0)
                slice(static_cast<int>(stage), "gradients, optimizer", "optimizer",
                      {ends[stage], ends[stage] + timeline.rest[stage]}, Json::object());
    }

    std::string finish(const Json& about) const
    {
        return fmt::format("{{\"displayTimeUnit\": \"ms\",\n\"otherData\": {},\n\"traceEvents\": [\n{}\n]}}\n",
                           jsonText(about, -1), fmt::join(m_lines, ",\n"));
    }

private:
    const std::vector<Op>& ops() const { return m_rank->schedule->ops; }
    const Interval& at(std::size_t op) const { return m_rank->timeline->ops[op]; }
    bool runs(std::size_t op) const { return ops()[op].phase != Phase::Init; }

    /// Whole nanoseconds: slices that meet must not overlap by what printing rounds off.
    double microseconds(double seconds) const { return std::round((seconds - m_origin) * 1e9) / 1e3; }

    void add(Json event) { m_lines.push_back(jsonText(event, -1)); }

    void metadata(const char* name, int track, const Json& args)
    {
        Json event{{"ph", "M"}, {"name", name}, {"pid", m_process}};
        if (track >= 0)
            event["tid"] = track;
        event["args"] = args;
        add(std::move(event));
    }

    void track(int id, std::string_view name)
    {
        metadata("thread_name", id, {{"name", name}});
        metadata("thread_sort_index", id, {{"sort_index", id}});
    }

    void slice(int track, std::string_view name, std::string_view category, const Interval& interval, const Json& args)
    {
        const double start = microseconds(interval.start);
        Json event{{"ph", "X"},
                   {"name", name},
                   {"cat", category},
                   {"pid", m_process},
                   {"tid", track},
                   {"ts", start},
                   {"dur", std::round((microseconds(interval.end) - start) * 1e3) / 1e3}};
        if (!args.empty())
            event["args"] = args;
        add(std::move(event));
    }

    /// Each from its first operation on the compute stream to its last there.
    void segments()
    {
        for (const Segment& segment : m_rank->schedule->segments) {
            Interval whole{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
            for (std::size_t i = segment.firstOp; i < segment.endOp; ++i)
                if (runs(i) && ops()[i].stream == Stream::Compute) {
                    whole.start = std::min(whole.start, at(i).start);
                    whole.end = std::max(whole.end, at(i).end);
                }
            if (whole.end < whole.start)
                continue;
            Json args = Json::object();
            if (segment.repeat > 1)
                args = {{"repeat", segment.repeat}, {"drawn", "the last repetition"}};
            slice(kSegmentTrack, segment.name, "segment", whole, args);
        }
    }

    std::string nameOfOp(const Op& op) const
    {
        std::string name(nameOf(op.kind));
        if (op.layer < 0)
            return name;
        const auto position = static_cast<std::size_t>(op.layer);
        std::string prefix = m_rank->model->layer(position).prefix; // "model.layers.{}"
        if (const std::size_t place = prefix.find("{}"); place != std::string::npos) {
            std::int64_t block = 0;
            for (std::size_t i = 0; i < position; ++i)
                block += m_rank->model->layer(i).kind == LayerKind::Block ? 1 : 0;
            prefix.replace(place, 2, std::to_string(block));
        }
        return name + ' ' + prefix;
    }

    void slices(Stream stream)
    {
        const int id = static_cast<int>(stream) + 1;
        bool used = false;
        for (std::size_t i = 0; i < ops().size(); ++i) {
            const Op& op = ops()[i];
            if (!runs(i) || op.stream != stream || at(i).end <= at(i).start)
                continue;
            if (!used)
                track(id, nameOf(stream));
            used = true;
            slice(id, nameOfOp(op), nameOf(op.phase), at(i), argsOf(static_cast<OpId>(i), op));
        }
    }

    Json argsOf(OpId id, const Op& op) const
    {
        const SizeTable& sizes = m_rank->schedule->sizes;
        Json args{{"op", id}};
        if (op.payload >= 0) {
            const Payload& payload = sizes.payloads[static_cast<std::size_t>(op.payload)];
            args["payload"] = payload.name;
            args["bytes"] = (payload.bytes * op.payloadCount).count();
        }
        if (op.group >= 0) {
            const Group& group = sizes.groups[static_cast<std::size_t>(op.group)];
            args["group"] = group.name;
            args["ranks"] = group.ranks;
            args["nodes"] = group.nodes;
        }
        return args;
    }

    /// Memory changes in the order of issuing; what is issued later than it starts elsewhere waits its turn.
    void counters()
    {
        double time = m_origin;
        for (const CurvePoint& point : m_rank->memory->curve) {
            if (!runs(static_cast<std::size_t>(point.op)))
                continue;
            time = std::max(time, at(static_cast<std::size_t>(point.op)).start);
            Json args = Json::object();
            for (std::size_t i = 0; i < kCategoryCount; ++i)
                args[std::string(nameOf(static_cast<Category>(i)))] = point.byCategory[i].count();
            add({{"ph", "C"},
                 {"name", "GPU memory, bytes"},
                 {"pid", m_process},
                 {"ts", microseconds(time)},
                 {"args", std::move(args)}});
        }
    }

    std::vector<std::string> m_lines;
    const TracedRank* m_rank = nullptr;
    std::size_t m_process = 0;
    double m_origin = 0; // seconds, where the trace's time begins
};

} // namespace

std::string traceJson(const std::string& scenario, const std::string& strategy, const TracedJob& job)
{
    const auto nanoseconds = [](double seconds) { return std::round(seconds * 1e9) / 1e9; };
    TraceWriter writer;
    Json seconds = Json::array();
    for (std::size_t i = 0; i < job.ranks.size(); ++i) {
        writer.rank(i, job.ranks[i]);
        seconds.push_back(nanoseconds(job.ranks[i].timeline->seconds));
    }
    if (job.pipeline != nullptr)
        writer.pipeline(job.ranks.size(), *job.pipeline);
    Json about{{"schema", "shardwright-trace/1"},
               {"scenario", scenario},
               {"strategy", strategy},
               {"step_seconds", std::move(seconds)}};
    if (job.plannedSeconds)
        about["planned_step_seconds"] = nanoseconds(*job.plannedSeconds);
    return writer.finish(about);
}

} // namespace shardwright

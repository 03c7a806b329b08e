// What one micro-step keeps and how high its memory stands, operation by operation, for the comparison with torch
// (tests/conformance/activations_against_transformers.py):
//     saved_activations ID|FOLDER|FILE TRAINING.json [checkpoint-children]
// prints {"saved": [{"kind", "tensors": [[name, bytes], ...]}, ...] by layer, as they stand when the loss begins,
// "rises": [{"phase": "forward|loss-forward|loss-backward|backward", "layer", "bytes"}, ...]: how far live bytes on the
// GPU rise above where the phase found them}.
// A recomputation counts as backward. Token ids, labels and positions are left out.

#include <algorithm>
#include <exception>
#include <map>
#include <string>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/activations/activation_model.hpp"

namespace {

using namespace shardwright;

struct Live {
    BufferClassId bufferClass;
    int layer; // position in Model::layers that holds it
};

std::string_view phaseName(const Op& op)
{
    switch (op.kind) {
    case OpKind::LossForward: return "loss-forward";
    case OpKind::LossBackward: return "loss-backward";
    case OpKind::Recompute:
    case OpKind::Backward:
    case OpKind::CopyToDevice: return "backward";
    default: return "forward";
    }
}

/// Schedule of one micro-step, alone.
Schedule microStep(const Model& model, const Training& training, const ActivationModel& activations)
{
    SizeTable sizes;
    activations.defineSizes(sizes, training);
    ScheduleBuilder builder(sizes);
    ActivationWalk walk(activations);
    StageObserver observer;
    const int layers = static_cast<int>(model.layers.size());
    builder.beginSegment("micro-step");
    for (int layer = 0; layer < layers; ++layer)
        walk.forward(builder, layer, observer);
    walk.loss(builder);
    for (int layer = layers - 1; layer >= 0; --layer)
        walk.backward(builder, layer, observer);
    return builder.finish();
}

Json describe(const Model& model, const Schedule& schedule)
{
    Json saved = Json::array();
    Json rises = Json::array();
    std::int64_t start = 0; // live bytes when the phase began
    std::map<BufferId, Live> live;
    std::int64_t bytes = 0;
    for (const Op& op : schedule.ops) {
        if (op.kind == OpKind::LossForward)
            for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
                Json tensors = Json::array();
                for (const auto& [buffer, held] : live)
                    if (held.layer == static_cast<int>(layer)) {
                        const BufferClass& bufferClass =
                            schedule.sizes.buffers[static_cast<std::size_t>(held.bufferClass)];
                        tensors.push_back({bufferClass.spec->name, bufferClass.bytes.count()});
                    }
                saved.push_back({{"kind", static_cast<int>(model.layer(layer).kind)}, {"tensors", tensors}});
            }
        const std::int64_t before = bytes;
        std::int64_t peak = bytes;
        for (std::uint32_t i = op.firstEvent; i < op.firstEvent + op.eventCount; ++i) {
            const BufferEvent& event = schedule.events[i];
            const BufferClassId id = schedule.buffers[static_cast<std::size_t>(event.buffer)];
            const BufferClass& bufferClass = schedule.sizes.buffers[static_cast<std::size_t>(id)];
            const bool onGpu = bufferClass.spec->place == Place::Gpu;
            if (event.change == BufferChange::Allocate) {
                // A layer's output is kept, if at all, by the layer that reads it.
                const bool boundary = bufferClass.layerType < 0 && op.kind == OpKind::Forward && id == 0;
                live[event.buffer] = {id, op.layer + (boundary ? 1 : 0)};
                bytes += onGpu ? bufferClass.bytes.count() : 0;
                peak = std::max(peak, bytes);
            } else {
                live.erase(event.buffer);
                bytes -= onGpu ? bufferClass.bytes.count() : 0;
            }
        }
        const std::string_view phase = phaseName(op);
        if (!rises.empty() && rises.back()["phase"] == phase && rises.back()["layer"] == op.layer) {
            rises.back()["bytes"] = std::max(rises.back()["bytes"].get<std::int64_t>(), peak - start);
        } else {
            start = before;
            rises.push_back({{"phase", phase}, {"layer", op.layer}, {"bytes", peak - start}});
        }
    }
    return {{"saved", saved}, {"rises", rises}};
}

} // namespace

int main(int argc, char** argv)
{
    if (argc < 3) {
        fmt::print(stderr, "usage: saved_activations ID|FOLDER|FILE TRAINING.json [checkpoint-children]\n");
        return 2;
    }
    try {
        const Model model = readModel(argv[1]);
        Findings findings(argv[2]);
        const Json json = parseJson(readTextFile(argv[2]), argv[2]);
        const Training training = trainingFromJson(JsonCursor(json, findings));
        findings.throwIfAny();
        ActivationVariant variant;
        variant.checkpointChildren = argc > 3;
        const DType compute = training.precision.mixed.value_or(training.precision.load);
        const ActivationModel activations(model, training, compute, variant);
        fmt::print("{}\n", describe(model, microStep(model, training, activations)).dump());
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 2;
    }
    return 0;
}

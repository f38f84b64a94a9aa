// Runs an artifact on images: classify ARTIFACT IMAGE... [--json] [--runtime NAME] [--top N]
#include <cstdio>
#include <iostream>

#include "image_file.hpp"

// The outputs that this program is written for; an artifact without them is refused.
static std::vector<std::string> const needed = {};

static constexpr std::size_t at_once = 8;  // images that are in memory at a time

/// An output's values, for other programs: --json.
static tcompile::json values(tcompile::Tensor const& tensor) {
  return {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"values", tensor.floats()}};
}

static void show(tcompile::Result const& result, std::vector<std::string> const& files,
                 std::size_t top, bool as_json) {
  std::string const classes = result.classes();
  tcompile::json outputs;
  if (as_json)
    for (auto const& [name, tensor] : result.outputs) outputs[name] = values(tensor);
  tcompile::json rows = tcompile::json::array();
  for (std::size_t i = 0; i < files.size(); ++i) {
    tcompile::json best = tcompile::json::array();
    if (!as_json) std::printf("%s\n", files[i].c_str());
    if (!classes.empty())
      for (tcompile::TopClass const& each : result.top(i, top)) {
        std::string const name =
            each.label.empty() ? "class " + std::to_string(each.index) : each.label;
        best.push_back({{"index", each.index}, {"label", each.label}, {"logit", each.logit},
                        {"probability", each.probability}});
        if (!as_json) std::printf("  %5.1f%%  %s\n", 100 * each.probability, name.c_str());
      }
    rows.push_back({{"file", files[i]}, {"top", best}});
  }
  if (!as_json && classes.empty())  // features, say
    for (auto const& [name, tensor] : result.outputs)
      std::printf("  %s %s %s\n", name.c_str(), tensor.dtype.c_str(),
                  tcompile::shown(tensor.shape).c_str());
  if (as_json) std::cout << tcompile::json{{"images", rows}, {"outputs", outputs}} << "\n";
}

/// A whole number that an option was given.
static std::size_t number(std::string const& option, std::string const& text) {
  if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos)
    throw tcompile::Error("is not a whole number", option + " " + text);
  return std::strtoul(text.c_str(), nullptr, 10);
}

static int run(std::vector<std::string> const& arguments) {
  tcompile::Options options;
  std::vector<std::string> given;
  std::size_t top = 3;
  bool as_json = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string const& each = arguments[i];
    auto const value = [&] {
      if (i + 1 == arguments.size()) throw tcompile::Error("needs a value", arguments[i]);
      return arguments[++i];
    };
    if (each == "--json") as_json = true;
    else if (each == "--runtime") options.runtime = value();
    else if (each == "--top") top = number(each, value());
    else if (each.rfind("--", 0) == 0) throw tcompile::Error("is not understood", each);
    else given.push_back(each);
  }
  if (given.size() < 2)
    throw tcompile::Error("classify ARTIFACT IMAGE... [--json] [--runtime NAME] [--top N]");
  tcompile::Model const model(given[0], options);
  model.require(needed);
  for (std::size_t start = 1; start < given.size(); start += at_once) {
    std::vector<std::string> files;
    std::vector<tcompile::Image> images;
    for (std::size_t i = start; i < std::min(start + at_once, given.size()); ++i) {
      files.push_back(given[i]);
      images.push_back(read_image(given[i]));
    }
    show(model(images), files, top, as_json);
  }
  return 0;
}

int main(int count, char** arguments) {
  try {
    int const code = run({arguments + 1, arguments + count});
    if (!std::cout || std::ferror(stdout) || std::fflush(stdout) != 0)
      throw tcompile::Error("cannot be written", "standard output");
    return code;
  } catch (tcompile::Error const& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_code;
  } catch (std::exception const& error) {  // of a runtime, or no memory
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}

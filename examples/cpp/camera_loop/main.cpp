// Runs an artifact frame by frame, and shows how long each took:
//
//   camera_loop ARTIFACT FOLDER [--frames N] [--runtime NAME] [--cuda-graphs]
//   ffmpeg -i /dev/video0 -f rawvideo -pix_fmt rgb24 - | camera_loop ARTIFACT --raw 640x480
//
// A frame's time is that of preparing it and running the model; reading it is not counted.
#include <chrono>
#include <cstdio>
#include <functional>
#include <iostream>

#include "image_file.hpp"

/// Gives frames until there are none.
using Frames = std::function<bool(tcompile::Image&)>;

/// Images of a folder, by name, again and again.
static Frames from_folder(std::string const& folder) {
  std::vector<std::string> files;
  for (auto const& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_regular_file()) files.push_back(entry.path().string());
  if (files.empty()) throw tcompile::Error("no images in this folder", folder);
  std::sort(files.begin(), files.end());
  return [files, at = std::size_t{0}](tcompile::Image& frame) mutable {
    frame = read_image(files[at++ % files.size()]);
    return true;
  };
}

/// Raw frames from standard input, `WIDTHxHEIGHT`, red, green, blue.
static Frames from_stdin(std::string const& size) {
  int width = 0, height = 0;
  char end = 0;
  if (std::sscanf(size.c_str(), "%dx%d%c", &width, &height, &end) != 2 || width < 1 || height < 1 ||
      width > 1 << 15 || height > 1 << 15)
    throw tcompile::Error("is not WIDTHxHEIGHT, such as 640x480", "--raw " + size);
  return [width, height](tcompile::Image& frame) {
    frame = tcompile::Image(width, height);
    std::cin.read(reinterpret_cast<char*>(frame.pixels.data()),
                  static_cast<std::streamsize>(frame.pixels.size()));
    if (std::cin.gcount() != 0 && !std::cin)
      throw tcompile::Error("ends within a frame", "standard input", "is --raw its size?");
    return static_cast<bool>(std::cin);
  };
}

/// A line for each of some equal steps from the fastest to the 99th percentile, and one for the rest.
static void show(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  auto const at = [&](double share) {
    return times[std::min(times.size() - 1, static_cast<std::size_t>(share * times.size()))];
  };
  std::printf("%zu frames: median %.2f ms, 90 %% below %.2f ms, 99 %% below %.2f ms, most %.2f ms\n",
              times.size(), at(.5), at(.9), at(.99), times.back());
  constexpr int lines = 10;
  double const low = times.front(), step = std::max((at(.99) - low) / lines, 1e-6);
  std::vector<std::size_t> counts(lines + 1);
  for (double time : times)
    ++counts[static_cast<std::size_t>(std::min<double>(lines, (time - low) / step))];
  std::size_t const most = *std::max_element(counts.begin(), counts.end());
  for (int i = 0; i <= lines; ++i)
    std::printf("%s%9.2f ms %7zu %s\n", i < lines ? "  " : "≥ ", low + i * step, counts[i],
                std::string(counts[i] * 50 / most, '#').c_str());
}

/// A whole number that an option was given.
static std::size_t number(std::string const& option, std::string const& text) {
  if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos)
    throw tcompile::Error("is not a whole number", option + " " + text);
  return std::strtoul(text.c_str(), nullptr, 10);
}

static int run(std::vector<std::string> const& arguments) {
  tcompile::Options options;
  std::string artifact, folder, raw;
  std::size_t most = 0;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string const& each = arguments[i];
    auto const value = [&] {
      if (i + 1 == arguments.size()) throw tcompile::Error("needs a value", arguments[i]);
      return arguments[++i];
    };
    if (each == "--raw") raw = value();
    else if (each == "--frames") most = number(each, value());
    else if (each == "--runtime") options.runtime = value();
    else if (each == "--cuda-graphs") options.cuda_graphs = true;
    else if (each.rfind("--", 0) == 0) throw tcompile::Error("is not understood", each);
    else (artifact.empty() ? artifact : folder) = each;
  }
  if (artifact.empty() || folder.empty() == raw.empty())
    throw tcompile::Error(
        "camera_loop ARTIFACT FOLDER | --raw WxH [--frames N] [--runtime NAME] [--cuda-graphs]");
  std::error_code ignored;
  if (!folder.empty() && !std::filesystem::is_directory(folder, ignored))
    throw tcompile::Error("no such folder", folder);
  Frames const frames = raw.empty() ? from_folder(folder) : from_stdin(raw);
  if (raw.empty() && most == 0) most = 100;
  tcompile::Model const model(artifact, options);
  std::vector<double> times;
  tcompile::Image frame;
  // The first frame is slower: memory is taken then. It is run, and not counted.
  for (bool first = true; (most == 0 || times.size() < most) && frames(frame); first = false) {
    auto const start = std::chrono::steady_clock::now();
    tcompile::Result const result = model({frame});
    std::chrono::duration<double, std::milli> const took = std::chrono::steady_clock::now() - start;
    if (!first) times.push_back(took.count());
    // Here a program uses the result: result.top(0), result["features"], result.tokens("features").
  }
  if (times.empty()) throw tcompile::Error("fewer than two frames", raw.empty() ? folder : "--raw");
  show(times);
  return 0;
}

int main(int count, char** arguments) {
  try {
    int const code = run({arguments + 1, arguments + count});
    if (std::ferror(stdout) || std::fflush(stdout) != 0)  // a full disk, say
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

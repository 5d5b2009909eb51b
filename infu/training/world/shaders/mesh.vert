#version 330
// A posed mesh; `paint` is where its skin is painted, `extra` what only its own material knows.
uniform mat4 view;
in vec3 position;
in vec3 normal;
in vec3 paint;
in vec3 extra;
out vec3 P;
out vec3 N;
out vec3 U;
out vec3 E;

void main() {
    P = position;
    N = normal;
    U = paint;
    E = extra;
    gl_Position = view * vec4(position, 1.0);
}

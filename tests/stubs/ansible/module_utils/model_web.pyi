from model_web import *
